"""Train harmon_fashion: MAR starts from mar_fashion, the language model from random weights."""

model = "harmon_fashion"
mar = dict(attn_dropout=0.0, proj_dropout=0.0, mask_ratio_min=0.2, diffusion_batch_mul=1)
mar_weights = "mar_fashion"
data = dict(type="fashion")
training = dict(
    batch_size=64, epochs=6, lr=1e-3, lr_schedule="cosine", warmup_epochs=0.1, ema_rate=0.998, dtype="bfloat16"
)
