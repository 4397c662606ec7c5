"""The grid of a study: which methods look for regions in which models, with which prompts."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from ballast.errors import UsageError
from ballast.locate import METHODS, Method, get_method
from ballast.prompts.readers import READERS
from ballast.regions.selection import Scope

Refine = Literal["none", "subtract", "refill"]
Share = Annotated[float, Field(gt=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetNames(_Table):
    """Prompt sets, named as for `load_prompts`.

    Attributes:
        safety: Harmful prompts; regions of different sets are compared.
        utility: Harmless prompts with responses, for refinement.
        text: Those of `utility` that are plain text: half of a row's words is its prompt, the rest the response.
    """

    safety: tuple[str, ...] = Field(min_length=1)
    utility: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


class ModelEntry(_Table):
    """A model; everything that is needed to open it in another process.

    Attributes:
        model: As for `open_model`.
        family: A word for the tables.
        base: Another model of the grid, for methods that compare with a second checkpoint.
        patch: Patch file, applied to the opened model.
        revision: Of a hub model.
        dtype: As for `open_model`.
    """

    model: str
    family: str = ""
    base: str | None = None
    patch: Path | None = None
    revision: str | None = None
    dtype: str = "auto"


class MethodEntry(_Table):
    """A method with its settings and what is selected of its scores.

    Attributes:
        method: Its name, see `ballast methods`.
        fraction: Share that is selected; None for the method's own choice, or 1 %.
        sizes: Several shares in the place of `fraction`, all selected from one scoring.
        scope: As for `Scores.select`.
        utility_fraction: Share that is selected per utility set; 0.04, of units as much as for safety.
        refine: In the place of the grid's.
        settings: Of the method.
    """

    method: str
    fraction: Share | None = None
    sizes: tuple[Share, ...] = ()
    scope: Scope | Literal["per_kind"] | None = None
    utility_fraction: Share | None = None
    refine: tuple[Refine, ...] | None = None
    settings: dict[str, JsonValue] = {}

    @property
    def fractions(self) -> tuple[float | None, ...]:
        """Every share that is selected; None is the method's own choice."""
        return self.sizes or (self.fraction,)

    @property
    def needs_base(self) -> bool:
        """Whether the method cannot be made without a second checkpoint."""
        if "base" not in _fields(self.method):
            return False
        try:
            get_method(self.method, **self._settings())
        except UsageError:
            return True
        return False

    def made(self, base: str | None, response: str | None) -> Method:
        """The method.

        Args:
            base: The second checkpoint, for a method that needs one.
            response: What prompts without a response are answered with; None for the method's own wordings.

        Raises:
            UsageError: The method or a setting is unknown, or does not work.
        """
        more: dict[str, Any] = {"base": base} if base is not None and self.needs_base else {}
        if response is not None and "refusals" in _fields(self.method):
            more["refusals"] = (response,)
        return get_method(self.method, **more | self._settings())

    def _settings(self) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}


class StudyGrid(_Table):
    """Every model with every method, prompt set, seed and size.

    Attributes:
        sets: The prompt sets.
        models: By the names that tables have.
        methods: By the names that tables have.
        prompts: Rows that are drawn of every set.
        seeds: Each draws its rows anew.
        splits: Halvings of every sample, for the ceiling; 0 for none.
        response: Answer of harmful prompts that bring none; None for the wordings of each method.
        refine: `subtract` also takes the weights for utility out, `refill` has the next best take their places.
        batch_size: Rows per backward pass.
    """

    sets: SetNames
    models: dict[str, ModelEntry] = Field(min_length=1)
    methods: dict[str, MethodEntry] = Field(min_length=1)
    prompts: PositiveInt = 96
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    splits: NonNegativeInt = 1
    response: str | None = None
    refine: tuple[Refine, ...] = ("none",)
    batch_size: PositiveInt = 8

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a grid file; relative paths in it start from its folder.

        Raises:
            UsageError: It cannot be read or does not describe a grid; the message names the key.
        """
        path = Path(path)
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"Cannot read the grid {path} ({error.strerror}); check the path.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"The grid {path} is not valid TOML ({error}); mend it.") from error
        try:
            grid = cls.model_validate(tables)
        except ValidationError as error:
            raise UsageError(f"The grid {path} cannot be used: {_sentence(error.errors()[0])}") from error
        return grid._beside(path.parent)

    def refinements(self, method: str) -> tuple[Refine, ...]:
        """The refinements of a method's regions."""
        own = self.methods[method].refine
        return self.refine if own is None else own

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse what no table by itself shows; a UsageError passes through pydantic as it is."""
        lists: dict[str, Sequence[object]] = {
            "seeds": self.seeds,
            "sets": (*self.sets.safety, *self.sets.utility),
            "refine": self.refine,
        }
        for name, method in self.methods.items():
            lists |= {f"methods.{name}.sizes": method.sizes, f"methods.{name}.refine": method.refine or ()}
        for key, values in lists.items():
            if len(set(values)) < len(values):
                raise UsageError(f"{key} has an entry twice; give each one once.")
        for name in self.sets.text:
            if name not in self.sets.utility:
                raise UsageError(f"sets.text has {name!r}, which is not in sets.utility; name it there too.")
        for name, model in self.models.items():
            self._check_base(name, model)
        for name, method in self.methods.items():
            self._check_method(name, method)
        return self

    def _check_base(self, name: str, model: ModelEntry) -> None:
        if model.base is None:
            return
        key = f"models.{name}.base"
        if model.base not in self.models or model.base == name:
            raise UsageError(
                f"{key} is {model.base!r}, which is no other model of the grid; {near(model.base, self.models)}"
            )
        base = self.models[model.base]
        before, at = {name}, model.base
        while at in self.models and at not in before:
            before.add(at)
            at = self.models[at].base or ""
        if at in before:
            raise UsageError(f"{key} leads back to {at!r}; a model cannot come before its own base.")
        if base.patch is not None or base.revision is not None:
            raise UsageError(f"{key} is {model.base!r}, which has a patch or a revision; save it and name its folder.")

    def _check_method(self, name: str, entry: MethodEntry) -> None:
        key = f"methods.{name}"
        if entry.method not in METHODS:
            raise UsageError(f"{key}.method is {entry.method!r}, which is no method; {near(entry.method, METHODS)}")
        if "base" in entry.settings:
            raise UsageError(f"{key}.settings has base; give it as the base of the models.")
        if entry.needs_base and not any(model.base for model in self.models.values()):
            raise UsageError(f"{key} compares with a second checkpoint; give at least one model a base.")
        try:
            made = entry.made("another checkpoint", self.response)
        except UsageError as error:
            raise UsageError(f"{key}.settings do not work: {error}") from error
        if entry.sizes and entry.fraction is not None:
            raise UsageError(f"{key} has both fraction and sizes; give one of them.")
        scopes = ("per_kind", "per_layer", "global") if made.granularity != "weight" else (*SCOPES_OF_WEIGHTS,)
        if entry.scope is not None and entry.scope not in scopes:
            raise UsageError(f"{key}.scope is {entry.scope!r}; a {made.granularity} has {', '.join(scopes)}.")
        refinements = self.refinements(name)
        if "none" not in refinements:
            raise UsageError(f"{key} is not located as it is; refinements start from that, so add none to refine.")
        if len(refinements) > 1 and not self.sets.utility:
            raise UsageError(f"{key} is to be refined, and sets.utility is empty; name sets there or refine none.")

    def _beside(self, folder: Path) -> Self:
        """The same with paths that start from the working directory."""

        def file(spec: str) -> str:
            return str(folder / spec) if Path(spec).suffix in READERS else spec

        sets = {key: tuple(map(file, names)) for key, names in self.sets}
        models = {
            name: entry.model_copy(
                update={
                    "model": str(folder / entry.model) if entry.model.startswith(".") else entry.model,
                    "patch": None if entry.patch is None else folder / entry.patch,
                }
            )
            for name, entry in self.models.items()
        }
        return self.model_copy(update={"sets": SetNames(**sets), "models": models})


SCOPES_OF_WEIGHTS = ("global", "per_layer", "per_tensor", "per_row")


def near(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    found = difflib.get_close_matches(word, [*known], n=3, cutoff=0.3) or sorted(known)[:3]
    return f"did you mean {', '.join(found)}?"


def _fields(method: str) -> set[str]:
    return {field.name for field in dataclasses.fields(METHODS[method])}


def _sentence(error: ErrorDetails) -> str:
    """What pydantic found first, with the key."""
    *tables, last = (str(piece) for piece in error["loc"])
    key = ".".join((*tables, last))
    if error["type"] == "extra_forbidden":
        known = {name for table in (StudyGrid, SetNames, ModelEntry, MethodEntry) for name in table.model_fields}
        return f"there is no key {key}; {near(last, sorted(known))}"
    if error["type"] == "missing":
        return f"{key} is missing; give it."
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; mend it."
