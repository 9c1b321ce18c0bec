"""The page, in gradio: controls, the pictures, and a canvas; and its server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from ..pipeline import Pipeline
from ..runtime.distributed import USER_ERRORS
from ..runtime.stop import stop_requests
from ..schedule import StepSchedule
from . import asking, drawing, show

FOLDER = Path(__file__).parent
MOST_WAITING = 32  # generations in the queue
HEAD = """<div class="head"><h1>DiSA: diffusion step annealing</h1>
<p>The more of a picture is drawn, the less is open: later parts need fewer diffusion steps. Same model, no training.
</p></div>"""
BOARD = """<div class="board empty"><canvas width="448" height="448" aria-label="picture to paint in"></canvas>
<p>Draw a picture first, or open your own</p></div>
<div class="tools"><label>Open your own picture<input type="file" accept="image/*"></label>
<button class="wipe">Wipe the paint</button></div>"""
ADVICE = """<h3>Draw a part anew</h3>
<p>Click a picture above, or open one of your own. Paint over what shall change, choose what shall be there, and
draw.</p>"""
CLICK = """element.addEventListener("click", (event) => {
  const { panel, index } = event.target.dataset;
  if (index !== undefined) trigger("click", { panel: Number(panel), index: Number(index) });
});"""
FONTS = [gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
MONO = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
THEME = gr.themes.Base(primary_hue="orange", neutral_hue="stone", font=FONTS, font_mono=MONO)

# What a browser needs of gradio's server. The rest does not exist here: uploads, files, and functions by name.
NEEDED = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|(assets|static)/.*|gradio_api/("
    r"startup-events|info/?|theme\.css|app_id|queue/(join|data)|cancel|reset/?|heartbeat/\w+))?"
)

Updates = dict[Any, Any]  # component -> its new value


class OnlyThePage:
    """Answers what the page itself asks for; nothing else is found."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        found = scope["type"] != "http" or NEEDED.fullmatch(scope["path"])
        await (self.app if found else PlainTextResponse("not found", 404))(scope, receive, send)


class Page:
    """The page on pipelines by name, the first of them chosen, with step schedules by name to choose from."""

    def __init__(self, pipes: Mapping[str, Pipeline], schedules: Mapping[str, StepSchedule]) -> None:
        self.pipes, self.schedules = pipes, schedules
        self.worker: drawing.Worker[Any] = drawing.Worker()
        with gr.Blocks(title="DiSA", analytics_enabled=False) as self.blocks:
            gr.HTML(HEAD)
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    self._add_controls()
                with gr.Column(scale=5, min_width=320):
                    self.message = gr.HTML(elem_id="message")
                    self.result = gr.HTML(show.panels(show.EMPTY), js_on_load=CLICK, elem_id="result")
                    with gr.Row(visible=False) as self.workshop:
                        self._add_workshop()
            self.drawn = gr.State([])  # images of each panel
            self.picture = gr.State(None)  # on the canvas
            self._listen()
        self.blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1)

    # ------------------------------------------------------------------------------------------------- components

    def _add_controls(self) -> None:
        self.model = gr.Dropdown(list(self.pipes), label="Model", elem_id="model")
        self.label = gr.Dropdown([], label="Class", allow_custom_value=True, visible=False, elem_id="label")
        self.prompt = gr.Textbox("a bright bag", label="Prompt", visible=False, elem_id="prompt")
        self.seeds = gr.Textbox("1", label="Seeds: one picture for each", elem_id="seeds")
        with gr.Row():
            self.go = gr.Button("Draw", variant="primary", elem_id="draw")
            self.stop = gr.Button("Stop", elem_id="stop")
        self.compare = gr.Checkbox(True, label="Compare: draw without DiSA, too", elem_id="compare")
        with gr.Accordion("Settings of DiSA", open=True):
            self.num_iter = gr.Slider(1, 64, step=1, label="AR steps", elem_id="num_iter")
            text = "Diffusion steps at the first AR step"
            self.upper = gr.Slider(1, 100, step=1, label=text, elem_id="upper")
            self.lower = gr.Slider(1, 100, step=1, label="… and at the last", elem_id="lower")
            names = [*asking.NAMES, *self.schedules]
            text = "How they fall" + " (or a calibrated schedule)" * bool(self.schedules)
            self.strategy = gr.Dropdown(names, label=text, elem_id="strategy")
            self.guidance = gr.Slider(1, 10, step=0.1, label="Guidance scale", elem_id="guidance")

    def _add_workshop(self) -> None:
        with gr.Column(min_width=280):
            script = (FOLDER / "canvas.js").read_text(encoding="utf-8")
            self.canvas = gr.HTML("", html_template=BOARD, js_on_load=script, elem_id="canvas")
        with gr.Column(min_width=280):
            gr.HTML(ADVICE)
            self.redraw = gr.Button("Draw the painted part anew", elem_id="redraw")
            with gr.Group(visible=False) as self.questions:
                self.question = gr.Textbox("What is in the picture?", label="Ask about the picture", elem_id="question")
                self.ask = gr.Button("Ask", elem_id="ask")
                self.answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")

    # ------------------------------------------------------------------------------------------------- events

    def _listen(self) -> None:
        """Say what happens on which event. What generates waits in one queue; the rest answers at once."""
        work = {"concurrency_id": "generation", "concurrency_limit": 1, "show_progress": "hidden"}
        light = {"concurrency_limit": None, "show_progress": "hidden"}
        hidden = {"api_visibility": "private"}
        controls = [self.model, self.label, self.prompt, self.seeds, self.num_iter, self.upper, self.lower]
        controls += [self.strategy, self.guidance, self.compare]
        shown = [self.message, self.result, self.drawn, self.picture, self.canvas]
        settings = [self.label, self.prompt, self.num_iter, self.upper, self.lower, self.strategy, self.guidance]
        parts = [*settings, *shown, self.workshop, self.questions, self.answer]
        gr.on([self.blocks.load, self.model.change], self._choose, self.model, parts, **light, **hidden)
        self.strategy.change(self._fix, self.strategy, [self.upper, self.lower], **light, **hidden)
        busy = [
            gr.on(
                [self.go.click, self.prompt.submit, self.seeds.submit], self._draw, controls, shown, **work, **hidden
            ),
            self.redraw.click(self._redraw, [*controls, self.picture, self.canvas], shown, **work, **hidden),
            gr.on(
                [self.ask.click, self.question.submit],
                self._ask,
                [self.model, self.picture, self.question],
                [self.message, self.answer],
                **work,
                **hidden,
            ),
        ]
        self.stop.click(None, cancels=busy)
        here = [self.message, self.picture, self.canvas]
        self.result.click(self._take, [self.model, self.drawn], here, **light, **hidden)
        self.canvas.upload(self._open, self.model, here, **light, **hidden)

    def _choose(self, name: str) -> Updates:
        """Set the controls to what a model takes and what is good for it."""
        pipe = self.pipes[name]
        sampling, editing, asking_too = pipe.sampling, asking.can_edit(pipe), asking.can_answer(pipe)
        classes = asking.class_choices(pipe)
        first = classes[min(9, len(classes) - 1)][1] if classes else None
        return {
            self.label: gr.update(choices=classes, value=first, visible=bool(classes)),
            self.prompt: gr.update(visible=asking_too),
            self.num_iter: gr.update(maximum=asking.most_ar_steps(pipe), value=sampling.num_iter or 1, visible=editing),
            self.upper: sampling.schedule.upper,
            self.lower: sampling.schedule.lower,
            self.strategy: sampling.schedule.strategy,
            self.guidance: sampling.guidance.scale,
            self.message: "",
            self.result: show.panels(show.EMPTY),
            self.drawn: [],
            self.picture: None,
            self.canvas: "",
            self.workshop: gr.update(visible=editing),
            self.questions: gr.update(visible=asking_too),
            self.answer: "",
        }

    def _fix(self, strategy: str) -> Updates:
        """Leave no choice of counts where a calibrated schedule has its own."""
        free = strategy in asking.NAMES
        return {self.upper: gr.update(interactive=free), self.lower: gr.update(interactive=free)}

    def _draw(self, name: str, label: str | None, prompt: str | None, *controls: Any) -> Iterator[Updates]:
        yield from self._sentences(self._panels(name, label, prompt, controls, None))

    def _redraw(self, name: str, label: str | None, prompt: str | None, *more: Any) -> Iterator[Updates]:
        *controls, picture, canvas = more
        yield from self._sentences(self._panels(name, label, prompt, controls, (picture, canvas)))

    def _panels(
        self,
        name: str,
        label: str | None,
        prompt: str | None,
        controls: Sequence[Any],
        editing: tuple[Image.Image | None, str] | None,
    ) -> Iterator[Updates]:
        """Draw as the controls say, with DiSA and without."""
        pipe = self.pipes[name]
        shown = (prompt if asking.can_answer(pipe) else label) or ""
        calls = asking.calls(pipe, asking.Asked(shown, *controls), self.schedules)
        edited = None
        if editing is not None:
            image = _there(editing[0])
            cells = json.loads(editing[1] or "{}").get("cells")
            edited = image, asking.mask_of(cells, image, pipe)
            for call in calls.values():
                call["num_iter"] = min(call["num_iter"], len(cells))
        yield {self.message: show.note(asking.unknown(pipe, shown))}
        panels: Sequence[drawing.Panel] = ()
        for panels in self.worker.stream(lambda emit: drawing.draw(pipe, calls, emit, edited)):
            yield {self.result: show.panels(panels)}
        drawn = [list(panel.images) for panel in panels]
        yield {self.drawn: drawn, **({} if edited else self._on_canvas(pipe, drawn[0][0]))}

    def _ask(self, name: str, picture: Image.Image | None, question: str) -> Iterator[Updates]:
        yield from self._sentences(self._answers(name, picture, question))

    def _answers(self, name: str, picture: Image.Image | None, question: str) -> Iterator[Updates]:
        pipe, image = self.pipes[name], _there(picture)
        yield {self.message: "", self.answer: ""}
        for answer in self.worker.stream(lambda emit: drawing.describe(pipe, image, question, emit)):
            yield {self.answer: answer}

    def _take(self, name: str, drawn: list[list[Image.Image]], event: gr.EventData) -> Updates:
        """Put the picture that was clicked on the canvas."""
        panel, index = event._data["panel"], event._data["index"]
        images = drawn[panel] if panel in range(len(drawn)) else []
        return self._on_canvas(self.pipes[name], images[index]) if index in range(len(images)) else {}

    def _open(self, name: str, event: gr.EventData) -> Updates:
        """Put a picture of the user's on the canvas."""
        try:
            return self._on_canvas(self.pipes[name], asking.read_picture(event._data["data"], self.pipes[name]))
        except ValueError as error:
            return {self.message: show.wrong(error)}

    def _on_canvas(self, pipe: Pipeline, image: Image.Image) -> Updates:
        columns, rows = (pixels // asking.token_side(pipe) for pixels in image.size)
        board = {"picture": show.data_url(image), "rows": rows, "columns": columns}
        return {self.message: "", self.picture: image, self.canvas: json.dumps(board)}

    def _sentences(self, updates: Iterator[Updates]) -> Iterator[Updates]:
        """Show what a user can mend as one sentence."""
        try:
            yield from updates
        except USER_ERRORS as error:
            yield {self.message: show.wrong(error)}


def _there(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise ValueError("there is no picture yet; draw one, or open your own")
    return picture


def serve(page: Page, host: str, port: int) -> None:
    """Serve a page until the process is asked to stop.

    Raises:
        OSError: the port is not free, or the host is none of this machine's.
    """
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    with stop_requests() as asked:
        try:
            page.blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                num_workers=0,
                footer_links=[],
                app_kwargs={"middleware": [Middleware(OnlyThePage)]},
                theme=THEME,
                css=css,
            )
            print(f"the page is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
            while not asked:
                time.sleep(0.2)
        finally:
            page.worker.close()
            page.blocks.close(verbose=False)
