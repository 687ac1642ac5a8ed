"""
Runs the stages of a recipe, in one process per launch: what is complete is skipped, what was begun goes on.

    python training/run_stages.py configs/recipes/literal.yaml --first 0 --last 3
    accelerate launch --multi_gpu --num_processes 8 training/run_stages.py configs/recipes/literal.yaml
    python training/run_stages.py configs/recipes/literal.yaml --first encoder --last encoder --require_targets true
    python training/run_stages.py RECIPE.yaml --plan_only true                  # says what it would do
    python training/run_stages.py RECIPE.yaml --options '{"max_steps": 20}'     # for every training stage

The recipe's folder then holds a folder for each stage, `stageN_checkpoint.txt` and `final_checkpoint.txt`, which name
them, and `recipe.json`, all options.
"""

import logging
import sys
from dataclasses import dataclass

from accelerate import PartialState
from transformers.hf_argparser import HfArg

from nest_hf.parsing import error_line, parse_arguments
from nest_hf.stage_plan import describe_machine, describe_stages
from nest_hf.stages import read_recipe, run_recipe, save_plan

logger = logging.getLogger("run_stages")


@dataclass
class RecipeArguments:
    first: str = HfArg(default="0", help="First stage to run: its number or name.")
    last: str | None = HfArg(default=None, help="Last stage to run; the recipe's last where not given.")
    output_dir: str | None = HfArg(default=None, help="Folder, instead of the recipe's.")
    options: dict | None = HfArg(default=None, help="Options of every training stage, as JSON; they win.")
    require_targets: bool = HfArg(default=False, help="Stop after a stage that misses one of its targets.")
    plan_only: bool = HfArg(default=False, help="Say what would be done, and no more.")
    estimate: bool = HfArg(default=True, help="Measure an update of every stage first, to say how long it takes.")
    use_cpu: bool = HfArg(default=False, help="Train on the CPU, also where there is a GPU.")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise ValueError("the recipe is missing: training/run_stages.py configs/recipes/literal.yaml ...")
    (args,) = parse_arguments(RecipeArguments, argv=sys.argv[2:])
    options = {**(args.options or {}), **({"use_cpu": True} if args.use_cpu else {})}
    recipe = read_recipe(sys.argv[1], output_dir=args.output_dir, options=options)
    stages = recipe.between(args.first, len(recipe.stages) - 1 if args.last is None else args.last)
    state = PartialState(cpu=args.use_cpu)
    level = logging.INFO if state.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    if state.is_main_process:
        for line in (*describe_machine(recipe.output_dir), *describe_stages(recipe, stages, estimate=args.estimate)):
            logger.info("%s", line)
        logger.info("output: %s, %d processes", recipe.output_dir, state.num_processes)
        save_plan(recipe)
    state.wait_for_everyone()
    if not args.plan_only:
        run_recipe(recipe, stages, is_main=state.is_main_process, require_targets=args.require_targets)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error_line(error)}")  # a progress bar may stand in the line before
