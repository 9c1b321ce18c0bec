# Harmon 0.5B, sampled as released: 100 diffusion steps at every AR step.
_base_ = "qwen2_5_1_5b_kl16_mar_h.py"
model = "harmon_0.5b"
text_tokenizer = "Qwen/Qwen2.5-0.5B-Instruct"
