"""Example: the attention video of one sample. Edit the settings and run `python run_attention_visualization.py`."""

from pathlib import Path

from visualizeHeatMap import AttentionVisualizer, visible

DEMO = Path(__file__).resolve().parent / "demo"

# What to look at: these three lines make it your own data.
MODEL_PATH = DEMO / "model"  # a directory with a Hugging Face checkpoint, or a name on the hub
BENCHMARK_JSON = DEMO / "dataset.json"  # a JSON list of {"id", "image", "problem", "solution", "answer"}
IMAGE_DIR = DEMO / "images"  # the folder that the pictures' paths start in

# How to look at it.
SAMPLE_IDX = 0
LAYER_IDX = 7  # 0-based; negative: from the end; a list gives one video a layer
START_PHRASE = "Based on the following requirements"
MAX_IMAGE_NUM = 2
MAX_NEW_TOKENS = 1024
OUTPUT_DIR = "."
FPS = 2


def main() -> None:
    visualizer = AttentionVisualizer(str(MODEL_PATH), MAX_IMAGE_NUM)
    sample, images = visualizer.load_sample_data(BENCHMARK_JSON, IMAGE_DIR, SAMPLE_IDX)
    video = visualizer.create_attention_visualization_for_sample(
        sample, images, LAYER_IDX, START_PHRASE, max_new_tokens=MAX_NEW_TOKENS, output_dir=OUTPUT_DIR, fps=FPS
    )
    print("response:", visible(visualizer.last_record.response))
    print("video:", video)


if __name__ == "__main__":
    main()
