"""What was found: scores, statistics, tables and figures.

scores       what a run is judged by
statistics   means, standard errors, paired differences, intervals and tests
summary      the scores of all methods, averaged and compared
findings     what may be said of them, in sentences
sensitivity  the accuracy over a grid of rho and lam
tables       what stands in each table
formats      a table as Markdown, LaTeX, CSV, JSON, and in the terminal
figures      curves, differences, sensitivity, the usable range of rho
numbers      all numbers, for results.json
environment  the machine and the packages behind them
write        all files of a report
"""
