"""Fetch xAR's published weights, the KL-16 tokenizer and ImageNet's statistics to where the commands look for them."""

from disa.cli import download, run

if __name__ == "__main__":
    run(lambda: download(__doc__, ("kl16", "xar_base", "xar_large", "xar_huge", "adm_in256_stats")))
