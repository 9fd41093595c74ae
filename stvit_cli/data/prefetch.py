"""Images decoded by threads ahead of the model, in order: Pillow's decoders release Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image

from stvit_cli.data.images import ImageSource, image_path, open_image
from stvit_cli.data.loader import usable_workers

MAX_THREADS = 4
"""Also the largest number of decoded images that wait for the model, which bounds the memory that they take."""

Opened = Callable[[], Image.Image]
"""Returns the decoded image, or raises what `open_image` raised for it."""


def decoded_ahead(images: Sequence[ImageSource]) -> Iterator[tuple[ImageSource, Opened]]:
    """Yield each image with a function that returns it decoded; the next ones are decoded meanwhile.

    Images that come from memory are converted when the function is called: one may be in the list twice, and Pillow's images are
    not safe to share between threads.

    Args:
        images: files, or images in memory.
    """
    threads = min(usable_workers(MAX_THREADS), len(images) - 1)
    if threads < 1:
        yield from ((source, partial(open_image, source)) for source in images)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        waiting: deque[Opened] = deque()
        for number, source in enumerate(images):
            for ahead in images[number + len(waiting) : number + threads]:
                waiting.append(partial(open_image, ahead) if image_path(ahead) is None else pool.submit(open_image, ahead).result)
            yield source, waiting.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
