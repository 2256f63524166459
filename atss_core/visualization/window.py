"""A window that shows one image after the other; by tkinter, which comes with most Pythons."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from PIL import Image


class Window:
    """Show images in a window, in a ``with`` block.

    Args:
        title: of the window.

    Raises:
        ValueError: if there is no display, or this Python has no tkinter.
    """

    def __init__(self, title: str) -> None:
        if importlib.util.find_spec("tkinter") is None:
            raise ValueError("--show needs tkinter, which this Python lacks (Debian's package: python3-tk)")
        tkinter = importlib.import_module("tkinter")
        self._image_tk = importlib.import_module("PIL.ImageTk")
        try:
            self._root = tkinter.Tk(className=title)
        except tkinter.TclError as error:
            raise ValueError(
                f"--show needs a desktop; without it all is written all the same ({error})"
            ) from None
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._photo: Any = None
        self.is_open = True
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        for key in ("<Escape>", "q"):
            self._root.bind(key, self._close)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exception: object) -> None:
        self._root.destroy()

    def show(self, image: Image.Image) -> None:
        """Show an image in place of the one before; ``is_open`` tells whether the user has closed it."""
        self._photo = self._image_tk.PhotoImage(image)  # Tk keeps no reference of its own
        self._label.configure(image=self._photo)
        self._root.update()

    def _close(self, event: object = None) -> None:
        self.is_open = False
