# Harmon 1.5B, sampled as released: 100 diffusion steps at every AR step.
model = "harmon_1.5b"
text_tokenizer = (
    "Qwen/Qwen2.5-1.5B-Instruct"  # a folder, or a name on the Hugging Face hub; None: comes with the package
)
sampler = "default"
schedule = dict(upper=100, lower=5, strategy="linear")
defaults = dict()  # flags' defaults, where a model wants others than the scripts'
