# Harmon 1.5B with DiSA: 50 diffusion steps at the first AR step, 5 at the last.
_base_ = "qwen2_5_1_5b_kl16_mar_h.py"
sampler = "DiSA"
schedule = dict(upper=50)
