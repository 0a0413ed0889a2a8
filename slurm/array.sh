#!/bin/bash
# Submit a script as a job array whose tasks share the work, and a job that waits for them and puts the parts together:
#
#   bash slurm/array.sh 8 slurm/scan.sbatch 'shards/{0000..0099}.tar' --output runs/scan
#   bash slurm/array.sh 4 --time=12:00:00 slurm/evaluate.sbatch detect --model M --prompts prompts.csv --output runs/s
#
# First how many tasks; options of sbatch for all of them; the script; its arguments. The same again goes on where tasks
# were stopped. Not for run folders of evaluate.sbatch, each of which is a task of its own: sbatch --array does that.
#
# Variables:
#   MERGE   options of sbatch for the job that waits, such as MERGE="--mem=8G --cpus-per-task=16"    (none)

set -euo pipefail

fail() {
    echo "array.sh: $*" >&2
    exit 2
}

USAGE="bash slurm/array.sh 8 slurm/scan.sbatch my_folder --output runs/scan"
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "${1:-nothing} is no number of tasks; such as: $USAGE"
LAST=$(($1 - 1))
shift
OPTIONS=()
while (($# > 0)) && [[ "$1" == -* ]]; do
    OPTIONS+=("$1")
    shift
done
(($# > 0)) || fail "no script; such as: $USAGE"
[[ -f "$1" && "$1" == *.sbatch ]] || fail "$1 is no script (options of sbatch take a =, as in --time=1:00:00)"
read -r -a MERGE <<<"${MERGE:-}"

export MEMTRAIN_MERGE=job # so that no task of the array puts parts together, on a node that is too small for that
ARRAY="$(sbatch --parsable --array="0-$LAST" ${OPTIONS[@]+"${OPTIONS[@]}"} "$@")"
ARRAY="${ARRAY%%;*}"
# afterany, not afterok: after a task that failed, the merge says which parts are missing and ends, instead of waiting
# for ever.
MERGING="$(sbatch --parsable --dependency="afterany:$ARRAY" ${OPTIONS[@]+"${OPTIONS[@]}"} ${MERGE[@]+"${MERGE[@]}"} \
    "$@" --shard merge)"
echo "array.sh: job $ARRAY does $((LAST + 1)) parts; job ${MERGING%%;*} waits for it and puts them together"
