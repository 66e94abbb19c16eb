"""When gpt3 is registered with transformers' Auto classes: as soon as transformers is there, and not before.

`hfgpt.model` registers what it has at its end. `import hfgpt` alone is to cost nothing, so that the command line answers at
once; yet after it, `AutoModelForCausalLM.from_pretrained` is to know gpt3. So `hfgpt.model` is imported with transformers:
at once if that is loaded, else at the end of its import, whoever asks for it.
"""

import importlib.machinery
import sys
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any


def register_with_transformers() -> None:
    """Import `hfgpt.model` now if transformers is loaded, else as soon as it is."""
    if sys.modules.get("transformers") is not None:
        __import__("hfgpt.model")
    elif not any(type(finder).__name__ == TransformersFinder.__name__ for finder in sys.meta_path):
        # By its name: after a reload the class of the finder that waits is another.
        sys.meta_path.insert(0, TransformersFinder())


class TransformersFinder:
    """Finds transformers as the other finders do, and has `hfgpt.model` imported after it. It then goes.

    Who only asks whether transformers is installed (`importlib.util.find_spec`) imports nothing.
    """

    def __init__(self) -> None:
        self._asking = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """What the other finders say, with a loader that says when it is done; None for any other module."""
        if name != "transformers" or getattr(self._asking, "now", False):
            return None
        self._asking.now = True  # another such finder may ask all finders, too
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find is not None and finder is not self else None
                if spec is not None:
                    break
            else:
                return None
        finally:
            self._asking.now = False
        if hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader:
    """A loader of transformers that leaves no trace in it."""

    def __init__(self, loader: Any, finder: TransformersFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        try:
            # As the statement does it: where another thread is importing it and waits for transformers, it is taken half
            # done, and that thread registers. `importlib.import_module` would raise.
            __import__("hfgpt.model")
        except Exception as error:
            # transformers itself is sound; `hfgpt.GPT3Config` raises the same error.
            warnings.warn(f"gpt3 is not registered with transformers: {error}", RuntimeWarning, stacklevel=2)
