"""The verdict: what DISAM and its kin do to unseen domains, with pretrained features and tables, under one protocol."""
