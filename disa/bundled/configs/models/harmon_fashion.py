# The small model of Fashion-MNIST, with DiSA.
model = "harmon_fashion"
text_tokenizer = None
sampler = "DiSA"
schedule = dict(upper=40, lower=8, strategy="linear")
defaults = dict(image_size=32, num_iter=16)
