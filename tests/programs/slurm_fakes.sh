#!/bin/bash
# Stands for scontrol, srun, ray, hostname and python in slurm.sbatch: notes each call in $CALLS.
name=$(basename "$0")
echo "$name $*" >> "$CALLS"
case $name in
    hostname) echo 127.0.0.1 ;;
    scontrol) # the second name comes when its reader may have gone
        [ "$1" != show ] || { echo node1 && sleep 0.2 && echo node2; }
        ;;
    srun) # a head that answers at its port until the job ends
        port=$(grep -oP -- '(?<=--port=)\d+' <<< "$*") || exit 0
        exec "$PYTHON" -m http.server --bind 127.0.0.1 "$port" 2> /dev/null
        ;;
    python)
        trap 'exit 130' TERM
        echo "address $RAY_ADDRESS" >> "$CALLS" # from here on it can be ended
        [ -z "$NO_RUN" ] || [[ $* != *--resume* ]] || exit 2
        [ -n "$QUICK" ] || for _ in $(seq 100); do sleep 0.1; done
        ;;
esac
