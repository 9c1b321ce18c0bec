"""Train harmon_fashion, its MAR from mar_fashion on, its language model from random weights."""

model = "harmon_fashion"
mar_weights = "mar_fashion"
mar = dict(attn_dropout=0.0, proj_dropout=0.0, mask_ratio_min=0.2, diffusion_batch_mul=1)
data = dict(type="fashion")
training = dict(
    batch_size=32, epochs=6, lr=1e-3, lr_schedule="cosine", warmup_epochs=0.1, ema_rate=0.998, dtype="float32"
)
