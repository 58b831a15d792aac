# The scripts beside the tests make their fixtures, with torch.
collect_ignore_glob = ["make_*_fixtures.py"]
