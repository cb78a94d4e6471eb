# What is asked of a device without Python. Needs a POSIX shell and the usual small tools; what is missing prints nothing.
#
#     sh without_python.sh probe                         # what the machine is
#     sh without_python.sh state                         # what changes from minute to minute
#     sh without_python.sh run DIRECTORY WORD...         # a program in the working directory
#     sh without_python.sh timed DIRECTORY SECONDS WORD...   # the same, with the board's power written to tegrastats.txt
#     sh without_python.sh lock FILE                     # clocks at their highest; FILE keeps those of before
#
# Facts are texts of the device's own tools under lines "== name", read on the machine that asked.

PATH="$PATH:/usr/sbin:/sbin:/usr/local/bin:/usr/local/cuda/bin:/usr/src/tensorrt/bin"

gpu_limits=power.limit,mig.mode.current,clocks.max.graphics,clocks.max.memory
gpu_limits=$gpu_limits,clocks.applications.graphics,clocks.applications.memory

section() {
    printf '\n== %s\n' "$1"
    shift
    timeout 20 "$@" 2>/dev/null | tr -d '\000'
}

frequencies() {
    for folder in /sys/devices/system/cpu/cpufreq/policy* /sys/class/devfreq/*; do
        for start in "$folder/scaling_" "$folder/"; do
            [ -r "${start}cur_freq" ] || continue
            printf '%s %s %s %s\n' "${folder##*/}" \
                "$(cat "${start}min_freq")" "$(cat "${start}max_freq")" "$(cat "${start}cur_freq")"
        done
    done 2>/dev/null
}

temperatures() {
    for zone in /sys/class/thermal/thermal_zone*; do
        [ -r "$zone/temp" ] && printf '%s %s %s\n' "$(cat "$zone/temp")" "${zone##*/}" "$(cat "$zone/type")"
    done 2>/dev/null
}

state() {
    section power_mode nvpmodel -q
    section memory cat /proc/meminfo
    section load cat /proc/loadavg
    section boot_id cat /proc/sys/kernel/random/boot_id
    section gpu_limits nvidia-smi "--query-gpu=$gpu_limits" --format=csv,noheader
    printf '\n== clocks\n'
    frequencies
    printf '\n== temperatures\n'
    temperatures
}

probe() {
    section architecture uname -m
    section system uname -s -r
    section board cat /proc/device-tree/model
    section cpu_info head -c 4000 /proc/cpuinfo
    section usable_cores env -u OMP_NUM_THREADS nproc
    section jetson_release cat /etc/nv_tegra_release
    section jetpack dpkg-query --show '--showformat=${Version}' nvidia-jetpack
    section driver cat /proc/driver/nvidia/version
    section gpus nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader
    section android getprop ro.product.model
    section chip getprop ro.soc.model
    printf '\n== trtexec\n%s\n' "$(command -v trtexec)"
    state
}

run() {
    cd "$1" || exit 1
    shift
    # What a call before exported is no answer of this one.
    for word; do
        case $word in --export*=*) rm -f "${word#*=}" ;; esac
    done
    "$@" &
    # Whoever leaves the directory stops the programs by these numbers.
    echo "$! $logger" >worker.pid
    wait "$!"
}

timed() {
    directory=$1 seconds=$2
    shift 2
    # Ends by itself where nobody is left to end it.
    # The directory in its words shows that the process is ours.
    timeout "$seconds" sh -c 'exec tegrastats --interval 100' "$directory" >"$directory/tegrastats.txt" 2>/dev/null &
    logger=$!
    run "$directory" "$@"
    code=$?
    kill "$logger" 2>/dev/null
    exit "$code"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

clocks() {
    command -v jetson_clocks || { echo 'there is no jetson_clocks' >&2; exit 1; }
}

lock() {
    program=$(clocks) || exit 1
    # Clocks of before are kept once: a second time they may be locked already.
    [ -f "$1" ] || as_root "$program" --store "$1" || exit 1
    as_root "$program"
}

"$@"
