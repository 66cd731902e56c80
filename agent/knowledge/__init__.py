"""What is known of making kernels fast and right, as pages that are found by full-text search.

The pages are Markdown with front matter, in folders beside this file: `constraints/` (what no
candidate may break), `guidance/` (for all targets) and `hardware/` (by vendor). `pages.py` reads
them, `vocabulary.py` holds the words of their front matter, `features.py` finds those that apply to
a kernel, `index.py` retrieves pages, `draft.py` writes one from what a search found.
"""

from kir.agent.knowledge.draft import Finding, draft_page, write_draft
from kir.agent.knowledge.features import kernel_features
from kir.agent.knowledge.index import Hit, Knowledge
from kir.agent.knowledge.pages import Page, load_pages, parse_page
from kir.agent.knowledge.vocabulary import DIAGNOSES, FEATURES, KINDS, TARGETS

__all__ = [
    "DIAGNOSES",
    "FEATURES",
    "KINDS",
    "TARGETS",
    "Finding",
    "Hit",
    "Knowledge",
    "Page",
    "draft_page",
    "kernel_features",
    "load_pages",
    "parse_page",
    "write_draft",
]
