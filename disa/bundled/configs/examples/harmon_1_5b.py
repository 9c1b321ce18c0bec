"""Fine-tune Harmon-1.5B on your own images: README.md has the layout of the lists."""

model = "harmon_1.5b"
checkpoint = "pretrained_models/harmon/harmon_1.5b.pth"
text_tokenizer = "Qwen/Qwen2.5-1.5B-Instruct"
freeze_llm = False
mar = dict(grad_checkpointing=True)
data = dict(
    type="folders",
    image_size=512,
    text_to_image=dict(
        data_path="data/text_to_image/data_info.json",
        local_folder="data/text_to_image/images",
        cap_folder="data/text_to_image/captions",
    ),
    image_to_text=dict(data_path="data/image_to_text/data_info.json", local_folder="data/image_to_text/images"),
)
training = dict(
    batch_size=8,
    epochs=1,
    lr=1e-5,
    lr_schedule="cosine",
    warmup_epochs=0.01,
    weight_decay=0.02,
    dtype="bfloat16",
    num_workers=8,
)
