"""Fine-tune Harmon-1.5B on your own images: see README.md for the lists' layout."""

model = "harmon_1.5b"
checkpoint = "pretrained_models/harmon/harmon_1.5b.pth"
text_tokenizer = "Qwen/Qwen2.5-1.5B-Instruct"
freeze_llm = False
mar = dict(grad_checkpointing=True)
data = dict(
    type="folders",
    image_size=512,
    drawing=dict(data_path="data/drawing/data_info.json", local_folder="data/drawing/images", cap_folder="data/drawing/captions"),
    answering=dict(data_path="data/answering/data_info.json", local_folder="data/answering/images"),
)
training = dict(
    batch_size=8, epochs=1, lr=1e-5, lr_schedule="cosine", warmup_epochs=0.01, weight_decay=0.02, dtype="bfloat16", num_workers=8
)
