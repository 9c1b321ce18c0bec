"""Fetch Harmon's published weights, and the tokenizer that fine-tuned ones need, to where the README's commands look for them."""

from disa.cli import download, run

if __name__ == "__main__":
    run(lambda: download(__doc__, ("harmon_0.5b", "harmon_1.5b", "harmon_1.5b-o", "kl16")))
