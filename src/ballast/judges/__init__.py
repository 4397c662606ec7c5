"""Text in, verdict out: judges that run anywhere, and how far they agree."""

from ballast.judges.agreement import Agreement, agreement
from ballast.judges.base import Judge, Judgement, Verdict
from ballast.judges.embedded import EmbeddedJudge
from ballast.judges.keyword import KeywordJudge
from ballast.judges.registry import JUDGES, get_judge, register

__all__ = [
    "JUDGES",
    "Agreement",
    "EmbeddedJudge",
    "Judge",
    "Judgement",
    "KeywordJudge",
    "Verdict",
    "agreement",
    "get_judge",
    "register",
]
