"""Refusals for harmful prompts that come without one."""

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request because it could cause harm.",
    "No, I won't help with that. It could hurt people.",
)
