# The few commands typed daily; `just` lists them.

_default:
    @just --list

# install everything, for development
setup:
    pip install -e '.[dev]'

# the default tests (a few minutes)
test *arguments:
    pytest -n auto {{arguments}}

# the tests that CI runs besides
test-slow:
    pytest -m slow -n auto

# lint, format and types
check:
    ruff check .
    ruff format --check .
    mypy

# rewrite what can be rewritten
fix:
    ruff check --fix .
    ruff format .

# train the 70x70 PatchGAN for minutes and look at it
demo:
    p2pzoo run recipes/ablation_patch70.toml --profile laptop
