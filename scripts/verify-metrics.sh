#!/usr/bin/env bash
# Is every metric the system needs in this Prometheus? One line each; behind each that is missing, why and what to do.
#   scripts/verify-metrics.sh [--prometheus URL]      --help says the rest; docs/verify-metrics.md shows it.
#
# bash 3.2, curl and POSIX tools: it runs where Prometheus is looked at, not only where the dispatcher is installed.
# Ten requests, whatever there is to say: a query per group, two for ages, the targets, the rules; three more when
# something is missing. Their answers become facts, one per line, and awk judges the table by them.
set -u

# ── what must be there ──

# group|name|kind|when it may be absent|what to do when its target is up and does not expose it
# kind: g gauge, c counter, h histogram (looked for by its _count), record and alert rules.
# tests/verify_metrics holds it to exporter/catalogue.py, the default signals, the dashboards and prometheus/rules. Our
# counters of known labels start at 0, so they are there from the first scrape on; what is not says when it comes.
table() {
    cat <<'TABLE'
host|node_cpu_seconds_total|c||
host|node_memory_MemAvailable_bytes|g||On macOS node_exporter has no such metric: set telemetry.signals.host_memory_available_bytes to an expression of yours.
host|node_memory_MemFree_bytes|g||
host|node_memory_MemTotal_bytes|g||On macOS: set telemetry.signals.host_memory_total_bytes to an expression of yours (node_memory_total_bytes).
host|node_pressure_cpu_waiting_seconds_total|c|the kernel counts no pressure (PSI): the dispatcher does without|
host|node_pressure_io_waiting_seconds_total|c|the kernel counts no pressure (PSI): the dispatcher does without|
host|node_pressure_memory_stalled_seconds_total|c|the kernel counts no pressure (PSI): the dispatcher does without|
host|node_pressure_memory_waiting_seconds_total|c|the kernel counts no pressure (PSI): the dispatcher does without|
containers|container_cpu_usage_seconds_total|c||
containers|container_memory_mapped_file|g||
containers|container_memory_rss|g||
containers|container_memory_working_set_bytes|g||
containers|container_pressure_memory_waiting_seconds_total|c|cAdvisor counts no pressure of containers here: it needs cgroup v2|
containers|container_spec_memory_limit_bytes|g||
containers|container_oom_events_total|c||cAdvisor reads them from /dev/kmsg: give it that device (compose: devices: [/dev/kmsg]), and no --disable_metrics=oom_event.
models|ollama_up|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
models|ollama_info|g|no model server has told its version yet|
models|ollama_models_loaded|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
models|ollama_model_loaded|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
models|ollama_model_memory_usage_bytes|g|no model has been loaded since the dispatcher started|
models|ollama_model_size_bytes|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
models|ollama_requests_total|c||
models|ollama_request_duration_seconds|h||
models|ollama_time_to_first_token_seconds|h||
models|ollama_load_duration_seconds|h||
models|ollama_queue_wait_seconds|h||
models|ollama_prompt_tokens_total|c||
models|ollama_generated_tokens_total|c||
models|ollama_eval_duration_seconds_total|c||
models|ollama_prompt_eval_duration_seconds_total|c||
models|ollama_generation_speed_tokens_per_second|g|no model has answered yet, with a timing of its engine|
models|ollama_queue_depth|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_decisions_total|c||
dispatcher|dispatcher_rejections_total|c||
dispatcher|dispatcher_decision_duration_seconds|h||
dispatcher|dispatcher_predicted_error_ratio|h||
dispatcher|dispatcher_fallbacks_total|c|only one model is configured: there is none to fall back to|
dispatcher|dispatcher_retries_total|c||
dispatcher|dispatcher_errors_total|c||
dispatcher|dispatcher_model_state|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_model_starts_total|c||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_model_stops_total|c||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_model_load_seconds|h||
dispatcher|dispatcher_swap_seconds_total|c||
dispatcher|dispatcher_memory_reserved_bytes|g||
dispatcher|dispatcher_memory_capacity_bytes|g||The dispatcher does not know this host's memory: dispatcher status says which source fails.
dispatcher|dispatcher_leases|g||
dispatcher|dispatcher_idle_model_byte_seconds_total|c||
dispatcher|dispatcher_signal_age_seconds|g||The dispatcher knows no signal at all: dispatcher status says which source fails.
dispatcher|dispatcher_signal_unknown|g||
dispatcher|dispatcher_degraded|g||
dispatcher|dispatcher_poll_duration_seconds|h||
dispatcher|dispatcher_poll_failures_total|c||
dispatcher|dispatcher_ticks_missed_total|c||
dispatcher|dispatcher_breaker_state|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_model_health|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_cache_hits_total|c||
dispatcher|dispatcher_cache_misses_total|c||
dispatcher|dispatcher_cache_bytes|g||
dispatcher|dispatcher_retry_budget_ratio|g||
dispatcher|dispatcher_queue_limit|g||The dispatcher sees no place for a model: dispatcher status, and lifecycle.provider in its configuration.
dispatcher|dispatcher_experiment_samples_total|c|no experiment has run|
dispatcher|dispatcher_experiment_rollbacks_total|c|no experiment has been rolled back|
dispatcher|dispatcher_shadow_decisions_total|c||
dispatcher|dispatcher_config_last_reload_successful|g||
dispatcher|dispatcher_build_info|g||
dispatcher|dispatcher_event_loop_lag_seconds|h||
dispatcher|dispatcher_abandoned_threads|g||
dispatcher|dispatcher_history_dropped_total|c||
rules|instance_model_status:ollama_requests:rate5m|record||
rules|instance:ollama_requests_counted:rate5m|record||
rules|instance:ollama_requests_counted:rate30m|record||
rules|instance:ollama_requests_counted:rate1h|record||
rules|instance:ollama_requests_counted:rate6h|record||
rules|instance:ollama_requests_failed:rate5m|record||
rules|instance:ollama_requests_failed:rate30m|record||
rules|instance:ollama_requests_failed:rate1h|record||
rules|instance:ollama_requests_failed:rate6h|record||
rules|instance:ollama_requests_failed:ratio_rate5m|record|nothing happened within its window|
rules|instance:ollama_requests_failed:ratio_rate30m|record|nothing happened within its window|
rules|instance:ollama_requests_failed:ratio_rate1h|record|nothing happened within its window|
rules|instance:ollama_requests_failed:ratio_rate6h|record|nothing happened within its window|
rules|instance_model:ollama_request_duration_seconds:p50_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_request_duration_seconds:p95_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_request_duration_seconds:p99_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_time_to_first_token_seconds:p50_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_time_to_first_token_seconds:p95_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_time_to_first_token_seconds:p95_rate15m|record|nothing happened within its window|
rules|instance_model:ollama_generated_tokens:per_second_rate5m|record|nothing happened within its window|
rules|instance_model:ollama_prompt_tokens:per_second_rate5m|record|nothing happened within its window|
rules|instance_place_priority:ollama_queue_depth:ratio|record||
rules|instance_model_outcome:dispatcher_decisions:rate5m|record||
rules|instance_model_rule:dispatcher_rejections:rate5m|record||
rules|instance:dispatcher_fallbacks:rate15m|record||
rules|instance:dispatcher_fallbacks:ratio_rate15m|record|nothing happened within its window|
rules|instance:dispatcher_predicted_error_ratio:p50_rate5m|record|nothing happened within its window|
rules|instance:dispatcher_decision_duration_seconds:p95_rate5m|record|nothing happened within its window|
rules|instance:dispatcher_idle_model_bytes:rate5m|record||
rules|instance:dispatcher_swap_seconds:ratio_rate15m|record||
rules|instance:dispatcher_memory_reserved:ratio|record||
rules|instance:dispatcher_ticks_missed:ratio_rate10m|record||
rules|instance:node_cpu_busy:ratio_rate2m|record||
rules|instance:node_cpu_steal:ratio_rate2m|record||
rules|instance:node_memory_available:ratio|record||
rules|instance:node_pressure_memory_some:ratio_rate1m|record||
rules|instance:node_pressure_memory_full:ratio_rate1m|record||
rules|instance:node_pressure_cpu_some:ratio_rate1m|record||
rules|instance_name:container_memory_working_set_bytes:max|record||
rules|instance_name:container_cpu_cores:rate2m|record||
rules|DispatcherDown|alert||
rules|ExporterDown|alert||
rules|DispatcherPrometheusUnreachable|alert||
rules|DispatcherPrometheusStale|alert||
rules|DispatcherBlind|alert||
rules|DispatcherEngineUnreachable|alert||
rules|DispatcherTicksMissed|alert||
rules|DispatcherConfigReloadFailed|alert||
rules|HistoryDropped|alert||
rules|AllModelsUnhealthy|alert||
rules|ModelQuarantined|alert||
rules|ModelStuck|alert||
rules|ModelServerDown|alert||
rules|ModelCrashed|alert||
rules|ModelOutOfMemory|alert||
rules|FirstTokenSlow|alert||
rules|ErrorBudgetBurnFast|alert||
rules|ErrorBudgetBurnSlow|alert||
rules|FallbackRateHigh|alert||
rules|RetryBudgetSpent|alert||
rules|QueueSaturated|alert||
rules|MemoryPressureNothingToEvict|alert||
rules|SwapStorm|alert||
rules|ModelFlapping|alert||
rules|IdleMemoryHeld|alert||
rules|ExperimentRolledBack|alert||
n8n|n8n_version_info|g||
n8n|n8n_active_workflow_count|g||
n8n|n8n_nodejs_eventloop_lag_p99_seconds|g||
n8n|n8n_node_finished_total|c|no workflow has run since n8n started, or N8N_METRICS_INCLUDE_MESSAGE_EVENT_BUS_METRICS is not true there|
n8n|n8n_workflow_started_total|c|no workflow has run since n8n started, or N8N_METRICS_INCLUDE_MESSAGE_EVENT_BUS_METRICS is not true there|
n8n|n8n_workflow_success_total|c|no workflow has succeeded since n8n started, or N8N_METRICS_INCLUDE_MESSAGE_EVENT_BUS_METRICS is not true there|
n8n|n8n_workflow_failed_total|c|no workflow has failed since n8n started, or N8N_METRICS_INCLUDE_MESSAGE_EVENT_BUS_METRICS is not true there|
n8n|n8n_http_request_duration_seconds|h|n8n counts them only when told to: N8N_METRICS_INCLUDE_API_ENDPOINTS|
TABLE
}

# ── options ──

usage() {
    cat <<'HELP'
Is every metric the system needs in this Prometheus?

  scripts/verify-metrics.sh [options]

  --prometheus URL     default $PROMETHEUS_URL, else http://127.0.0.1:9090;
                       with a path where there is one: http://host/prometheus
  --header 'N: value'  sent along, any number: 'Authorization: Bearer …'. Also
                       $PROMETHEUS_HEADER, which no process list shows
  --timeout SECONDS    of one request (default 10); of all, three times that
  --instance NAME      only series of this instance; without a port, of any port
  --only GROUP         judge only this group, any number: host, containers,
                       models, dispatcher, rules, n8n
  --require GROUP      n8n or containers: absence is a failure there, too
  --json               for programs: of each name, group, ok, reason, fix, …
  --verbose            the query behind each line, to paste into Prometheus
  --no-color           as NO_COLOR=1; without a terminal there is none anyway
  --help               this

  ✓ it is there        ✗ it is missing: why, and what to do
  – it is absent, and may be: nothing has happened yet that would be counted

Exit status: 0 all there; 1 something is missing, the last line names it;
2 Prometheus does not answer; 64 the command line is wrong.

Examples:
  scripts/verify-metrics.sh
  scripts/verify-metrics.sh --prometheus http://nas:9090 --instance box1
  scripts/verify-metrics.sh --only host --verbose
  scripts/verify-metrics.sh --json | grep -A4 '"ok": false'
HELP
}

GROUPS_THERE="host containers models dispatcher rules n8n"

wrong() {
    printf '%s\n' "verify-metrics: $1 (--help says more)" >&2
    exit 64
}

is_group() { case " $GROUPS_THERE " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

prometheus=${PROMETHEUS_URL:-http://127.0.0.1:9090}
timeout_seconds=10
instance="" only="" require="" json=0 verbose=0 color=1
newline='
'
headers=${PROMETHEUS_HEADER:-}
[ -z "${NO_COLOR:-}" ] || color=0

while [ $# -gt 0 ]; do
    option=$1 value=""
    case $option in
        --prometheus=* | --header=* | --timeout=* | --instance=* | --only=* | --require=*)
            value=${option#*=} option=${option%%=*}
            ;;
        --prometheus | --header | --timeout | --instance | --only | --require)
            [ $# -gt 1 ] || wrong "$option needs a value"
            value=$2
            shift
            ;;
    esac
    shift
    case $option in
        --prometheus) prometheus=$value ;;
        --header) headers="$headers${headers:+$newline}$value" ;;
        --timeout) timeout_seconds=$value ;;
        --instance) instance=$value ;;
        --only)
            is_group "$value" || wrong "--only $value: no such group; there are $GROUPS_THERE"
            only="$only $value"
            ;;
        --require)
            case $value in
                n8n | containers) require="$require $value" ;;
                *) wrong "--require $value: it takes n8n or containers; the other groups are required anyway" ;;
            esac
            ;;
        --json) json=1 ;;
        --verbose | -v) verbose=1 ;;
        --no-color | --no-colour) color=0 ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) wrong "$option: no such option" ;;
    esac
done

case $timeout_seconds in
    "" | *[!0-9]* | 0* | ????*) wrong "--timeout $timeout_seconds: a whole number of seconds, 1 to 300" ;;
esac
[ "$timeout_seconds" -le 300 ] || wrong "--timeout $timeout_seconds: a whole number of seconds, 1 to 300"
case $prometheus in
    http://?* | https://?*) ;;
    *) wrong "--prometheus $prometheus: an address such as http://127.0.0.1:9090" ;;
esac
case $prometheus in
    *[[:space:][:cntrl:]\"\\?\#]*) wrong "--prometheus: no spaces, quotes, backslashes, ? or # in the address" ;;
esac
case $instance in
    *[[:cntrl:]]*) wrong "--instance: no control characters" ;;
esac
if [ -n "$headers" ]; then
    while IFS= read -r header; do
        case $header in
            [!:[:space:]]*:*[[:cntrl:]]*) wrong "--header: no control characters" ;;
            [!:[:space:]]*:*) ;;
            *) wrong "--header: as 'Name: value'" ;;
        esac
    done <<HEADERS
$headers
HEADERS
fi
while [ "${prometheus%/}" != "$prometheus" ]; do prometheus=${prometheus%/}; done
# A password in the address is for curl, not for the screen.
shown=$(printf '%s' "$prometheus" | sed 's|//[^/]*@|//***@|')
[ "$json" = 0 ] && [ -t 1 ] || color=0
command -v curl >/dev/null 2>&1 || wrong "curl is not installed"

# ── asking ──

work=$(mktemp -d "${TMPDIR:-/tmp}/verify-metrics.XXXXXX") || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
out_of_time_at=$((SECONDS + 3 * timeout_seconds))

quoted() { printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# Headers may be secrets: curl reads them from a file that only we can, not from its command line.
(
    umask 077
    [ -z "$headers" ] || printf '%s\n' "$headers" | while IFS= read -r header; do
        printf 'header = %s\n' "$(quoted "$header")"
    done >"$work/curl.conf"
    [ -e "$work/curl.conf" ] || : >"$work/curl.conf"
)

silent() { # exit 2, with one line
    if [ "$json" = 1 ]; then
        printf '{"prometheus": %s, "ok": false, "error": %s, "missing": [], "metrics": []}\n' \
            "$(quoted "$shown")" "$(quoted "$1")"
    fi
    printf '%s\n' "verify-metrics: $1" >&2
    exit 2
}

# JSON as one line per value, `path<TAB>value`. A comma ends a line for awk, so that no line is long; one within a string
# is put back. Control characters, escaped or not, become spaces: they would be told to the terminal.
flatten() {
    LC_ALL=C tr -d '\000-\010\013-\037\177' <"$1" | LC_ALL=C tr '\t\n,' '  \n' | LC_ALL=C awk '
        function current() { return type[depth] == "[" ? count[depth] : key[depth] }
        function flush() {
            gsub(/^ +| +$/, "", raw)
            if (whole) print prefix[depth] current() "\t" text
            else if (raw != "") print prefix[depth] current() "\t" raw
            whole = 0; raw = ""
        }
        function character(hex,   number, i) {
            number = 0
            for (i = 1; i <= 4; i++) number = number * 16 + index("0123456789abcdef", tolower(substr(hex, i, 1))) - 1
            return number >= 32 && number < 127 ? sprintf("%c", number) : number < 160 ? " " : "?"
        }
        NR > 1 {
            if (within) text = text ","
            else { flush(); if (type[depth] == "[") count[depth]++ }
        }
        {
            rest = $0
            while (rest != "") {
                if (within) {
                    if (!match(rest, /["\\]/)) { text = text rest; break }
                    text = text substr(rest, 1, RSTART - 1)
                    if (substr(rest, RSTART, 1) == "\"") { within = 0; whole = 1; rest = substr(rest, RSTART + 1); continue }
                    escape = substr(rest, RSTART + 1, 1)
                    taken = 2
                    if (escape == "u") { text = text character(substr(rest, RSTART + 2, 4)); taken = 6 }
                    else if (index("ntrbf", escape)) text = text " "
                    else text = text escape
                    rest = substr(rest, RSTART + taken)
                } else {
                    if (!match(rest, /[][{}:"]/)) { raw = raw rest; break }
                    raw = raw substr(rest, 1, RSTART - 1)
                    mark = substr(rest, RSTART, 1)
                    rest = substr(rest, RSTART + 1)
                    if (mark == "\"") { within = 1; text = "" }
                    else if (mark == ":") { key[depth] = text; whole = 0; raw = "" }
                    else if (mark == "{" || mark == "[") {
                        path = depth ? prefix[depth] current() "." : ""
                        depth++; prefix[depth] = path; type[depth] = mark; count[depth] = 0; key[depth] = ""; raw = ""
                    } else { flush(); depth--; if (depth < 0) exit 1 }
                }
            }
        }
        END { if (depth != 0 || within) exit 1 }' >"$2"
}

why_no_answer() { # curl's exit status → words
    case $1 in
        6) printf 'no such host' ;;
        7) printf 'connection refused or no route' ;;
        28) printf 'no answer within %s s' "$timeout_seconds" ;;
        35 | 51 | 53 | 54 | 58 | 59 | 60 | 66 | 77 | 83 | 91) printf 'TLS failed: %s' "$2" ;;
        52) printf 'it closed the connection without a word' ;;
        *) printf '%s' "${2:-curl said $1}" ;;
    esac
}

# fetch NAME PATH [key=value …]: $work/NAME.flat on success. Else 1 for 404 where $may_be_absent, or exit 2.
may_be_absent=0
fetch() {
    name=$1 path=$2
    shift 2
    left=$((out_of_time_at - SECONDS))
    [ "$left" -gt 0 ] || silent "Prometheus at $shown is too slow: $((3 * timeout_seconds)) s were not enough. Try --timeout $((3 * timeout_seconds))."
    [ "$left" -lt "$timeout_seconds" ] || left=$timeout_seconds
    for parameter in "$@"; do
        set -- "$@" --data-urlencode "$parameter"
        shift
    done
    # The address may hold a password, so it is not on curl's command line either.
    status=$(printf 'url = %s\n' "$(quoted "$prometheus$path")" | curl -q --globoff --silent --show-error --get --config "$work/curl.conf" --proto =http,https \
        --noproxy "${NO_PROXY:-${no_proxy:-}},localhost,127.0.0.1,::1" \
        --connect-timeout "$left" --max-time "$left" --max-filesize 50000000 --output "$work/$name" \
        --write-out '%{http_code} %{redirect_url}' --config - ${1+"$@"} 2>"$work/curl.err")
    ended=$?
    if [ "$ended" != 0 ]; then
        said=$(head -n 1 "$work/curl.err" | sed 's/^curl: ([0-9]*) //' | LC_ALL=C tr -d '\000-\037\177')
        silent "Prometheus at $shown does not answer: $(why_no_answer "$ended" "$said")."
    fi
    code=${status%% *} target=${status#* }
    target=$(printf '%s' "${target%%\?*}" | LC_ALL=C tr -d '\000-\037\177')
    case $code in
        2?? | 400 | 422) ;;
        401 | 403) silent "Prometheus at $shown wants to know who asks ($code): --header 'Authorization: Bearer …'" ;;
        3??) silent "$shown answers with a redirect to ${target:-elsewhere} ($code), as login pages do: give Prometheus' own address, or a --header." ;;
        404)
            [ "$may_be_absent" = 0 ] || return 1
            silent "There is no Prometheus at $shown: $path is not found (404). Is there a path in front of it?"
            ;;
        503) silent "Prometheus at $shown is not ready yet (503). Its log says what it waits for." ;;
        *)
            [ "$may_be_absent" = 0 ] || return 1
            silent "Prometheus at $shown answers $code. Its log, or that of the proxy in front of it, says why."
            ;;
    esac
    # Without a body curl leaves no file.
    [ -e "$work/$name" ] || : >"$work/$name"
    if ! flatten "$work/$name" "$work/$name.flat" || ! grep -q '^status	' "$work/$name.flat"; then
        silent "What answers at $shown is not Prometheus: not its JSON came back, but something else ($code)."
    fi
    grep -q '^status	success$' "$work/$name.flat" ||
        silent "Prometheus at $shown refused a query: $(sed -n 's/^error	//p' "$work/$name.flat" | head -n 1)"
}

names_of() { # group: the series' names, joined with |
    table | awk -F'|' -v group="$1" '$1 == group && $3 != "alert" { printf "%s%s%s", sep, $2, ($3 == "h" ? "_count" : ""); sep = "|" }'
}

# The value goes into a regular expression within a string of PromQL: both are escaped.
of_instance=""
if [ -n "$instance" ]; then
    of_instance=$(printf '%s' "$instance" | sed 's/[][\\.*+?(){}|^$]/\\&/g; s/\\/\\\\/g; s/"/\\"/g')
    of_instance=",instance=~\"$of_instance(:[0-9]+)?\""
fi

matchers() { # group: what follows the name in a selector
    case $1 in
        rules) ;;
        # Without a container's name it is a cgroup: the whole machine, a service.
        containers) printf ',name!=""%s' "$of_instance" ;;
        *) printf '%s' "$of_instance" ;;
    esac
}

series_facts() { # fact, file: one line for each name and job
    awk -F'\t' -v fact="$1" '
        { split($1, at, ".") }
        at[1] != "data" || at[2] != "result" { next }
        at[4] == "metric" { label[at[3], at[5]] = $2; if (!(at[3] in seen)) { seen[at[3]] = 1; order[++n] = at[3] } next }
        at[4] == "value" && at[5] == 1 { value[at[3]] = $2; if (!(at[3] in seen)) { seen[at[3]] = 1; order[++n] = at[3] } }
        END {
            for (i = 1; i <= n; i++) {
                row = order[i]
                name = label[row, "__name__"] != "" ? label[row, "__name__"] : label[row, "metric"]
                print fact "\t" name "\t" label[row, "job"] "\t" value[row]
            }
        }' "$2"
}

gather() {
    : >"$work/facts"
    for group in $GROUPS_THERE; do
        # NaN is no value: `>= -Inf` leaves it out.
        fetch "is_$group" /api/v1/query \
            "query=count by (__name__, job) ({__name__=~\"$(names_of "$group")\"$(matchers "$group")} >= -Inf)"
        series_facts present "$work/is_$group.flat" >>"$work/facts"
    done
    fetch ages /api/v1/query "query=min by (job) (time() - timestamp(up))"
    series_facts age "$work/ages.flat" >>"$work/facts"
    fetch container_ages /api/v1/query \
        "query=min by (job) (time() - timestamp(container_memory_working_set_bytes{name!=\"\"$of_instance}))"
    series_facts container_age "$work/container_ages.flat" >>"$work/facts"
    may_be_absent=1 # other servers with Prometheus' API may lack these two
    if fetch targets /api/v1/targets "state=active"; then
        printf 'targets\n' >>"$work/facts"
        awk -F'\t' '
            { split($1, at, ".") }
            at[1] != "data" || at[2] != "activeTargets" { next }
            !(at[3] in seen) { seen[at[3]] = 1; order[++n] = at[3] }
            at[4] == "labels" { label[at[3], at[5]] = $2; next }
            at[5] == "" { field[at[3], at[4]] = $2 }
            END {
                for (i = 1; i <= n; i++) {
                    row = order[i]
                    print "target\t" label[row, "job"] "\t" label[row, "instance"] "\t" field[row, "scrapeUrl"] \
                        "\t" field[row, "health"] "\t" field[row, "scrapeInterval"] "\t" field[row, "lastError"]
                }
            }' "$work/targets.flat" >>"$work/facts"
    fi
    if fetch rules /api/v1/rules; then
        printf 'rules\n' >>"$work/facts"
        awk -F'\t' '
            { split($1, at, "."); row = at[3] "." at[5] }
            at[1] != "data" || at[2] != "groups" || at[4] != "rules" || at[7] != "" { next }
            !(row in seen) { seen[row] = 1; order[++n] = row }
            { field[row, at[6]] = $2 }
            END {
                for (i = 1; i <= n; i++) {
                    row = order[i]
                    print "rule\t" field[row, "name"] "\t" field[row, "type"] "\t" field[row, "health"] \
                        "\t" field[row, "query"] "\t" field[row, "lastError"]
                }
            }' "$work/rules.flat" >>"$work/facts"
    fi
    may_be_absent=0
}

gather_about_missing() { # names joined with |: are there series that are no number, or were there any lately?
    fetch nan /api/v1/query "query=count by (__name__, job) ({__name__=~\"$1\"$of_instance})"
    series_facts not_a_number "$work/nan.flat" >>"$work/facts"
    fetch lately /api/v1/query \
        "query=time() - max by (metric, job) (max_over_time(timestamp(label_replace({__name__=~\"$1\"$of_instance}, \"metric\", \"\$1\", \"__name__\", \"(.+)\"))[1h:30s]))"
    series_facts lately "$work/lately.flat" >>"$work/facts"
    printf 'asked_docker\n' >>"$work/facts"
    fetch docker /api/v1/query "query=count by (__name__) (ollama_up{place=~\"docker:.*\"$of_instance})"
    series_facts docker "$work/docker.flat" >>"$work/facts"
}

# ── judging ──

# One line for each of the table: group, name, status (ok, missing, absent), how many series, query, reason, fix.
judge() {
    table >"$work/table"
    REQUIRE=" $require " INSTANCE=$instance OF_CONTAINERS=$(matchers containers) OF_OTHERS=$of_instance awk -F'\t' '
        function seconds(text,   total, number) { # 1m30s → 90
            total = 0
            while (match(text, /^[0-9.]+(ms|s|m|h)/)) {
                number = substr(text, 1, RLENGTH)
                text = substr(text, RLENGTH + 1)
                total += number * (number ~ /ms$/ ? 0.001 : number ~ /s$/ ? 1 : number ~ /m$/ ? 60 : 3600)
            }
            return total
        }
        function spoken(age) { return age < 120 ? int(age + 0.5) " s" : int(age / 60 + 0.5) " min" }
        function ours(name) { return instance == "" || name == instance || index(name, instance ":") == 1 }
        # Which target ought to have it, and how that is: sets state, job, url, error.
        function look(group, seen_job,   i, pass, fits, of_others) {
            state = targets_known ? "none" : "unknown"; job = default_job[group]; url = error = ""
            of_others = 0
            # The job that had it; the one of our prometheus.yml; one that is called like it.
            for (pass = 1; pass <= 3 && state == "none"; pass++) for (i = 1; i <= targets; i++) {
                fits = pass == 1 ? seen_job != "" && target_job[i] == seen_job : pass == 2 ? target_job[i] == default_job[group] : index(tolower(target_job[i]), like[group])
                if (!fits) continue
                if (!ours(target_instance[i])) { of_others = 1; continue }
                if (state == "up") continue
                if (state == "down" && target_health[i] != "up") continue
                state = target_health[i] == "up" ? "up" : target_health[i] == "down" ? "down" : "waiting"
                job = target_job[i]; url = target_url[i]; error = target_error[i]
            }
            if (state == "none" && of_others) state = "others"
        }
        function input_of(query,   n, words, i, name) { # the first metric of it that is not there
            n = split(query, words, /[^a-zA-Z0-9_:]+/)
            for (i = 1; i <= n; i++) {
                name = words[i]
                if (!(name in verdict)) sub(/_(bucket|count|sum)$/, "", name)
                if (name in verdict && verdict[name] != "ok") return name
            }
            return ""
        }
        function say(status) { verdict[name] = status; print group "\t" name "\t" status "\t" kind "\t" series "\t" query "\t" reason "\t" fix }
        function misnamed(   jobs) { # the job the dispatcher is scraped by, where no job is called dispatcher
            if (index("\t" jobs_of["ollama_up"] "\t", "\tdispatcher\t")) return ""
            split(jobs_of["ollama_up"], jobs, "\t")
            return jobs[1]
        }
        function judge_rule(   what) {
            fix = "prometheus.yml: rule_files: [rules/*.yml] with the file it is in, then reload Prometheus."
            what = kind "," name
            if (!rules_known) {
                reason = "this server does not tell its rules (/api/v1/rules)"
                fix = "Ask the Prometheus that evaluates them."
                say(kind == "record" && series ? "ok" : kind == "record" ? "missing" : "absent")
            } else if (!(what in rule_health)) {
                reason = "rule not loaded"
                say("missing")
            } else if (rule_health[what] == "err") {
                reason = "rule fails: " rule_error[what]
                fix = "promtool check rules; two jobs that scrape the same thing are a usual cause."
                say("missing")
            } else if (kind == "alert" && name == "DispatcherDown" && misnamed() != "") {
                reason = "it fires though the dispatcher is scraped: it looks for job dispatcher, and the job here is " misnamed()
                fix = "prometheus.yml: job_name dispatcher."
                say("missing")
            } else if (kind == "alert" || series) say("ok")
            else if (rule_health[what] == "unknown") {
                reason = "rule loaded, not evaluated yet"
                fix = "Wait for one evaluation_interval."
                say("missing")
            } else if ((input = input_of(rule_query[what])) != "") {
                reason = "follows from " input
                say("absent")
            } else if (may_be_absent != "") {
                reason = may_be_absent
                say("absent")
            } else {
                reason = (what_nan[name] ? "value NaN" : "loaded, and yields nothing though its metrics are there")
                fix = "A rate needs two scrapes: wait. Then paste its expression into Prometheus: " rule_query[what]
                say("missing")
            }
        }
        function judge_series(   jobs, n, i, age, youngest, limit) {
            n = split(jobs_of[counted], jobs, "\t")
            youngest = ""
            for (i = 1; i <= n; i++) if (jobs[i] in age_of) {
                age = age_of[jobs[i]]
                limit = 3 * (jobs[i] in interval_of ? interval_of[jobs[i]] : 60)
                if (limit < 30) limit = 30
                if (age <= limit) { youngest = ""; break }
                if (youngest == "" || age < youngest) youngest = age
            }
            if (series && group == "containers" && container_age != "" && container_age > 120) {
                reason = "series is stale since " spoken(container_age) ": their own timestamps are that old"
                fix = "prometheus.yml, job cadvisor: honor_timestamps: false; and is cAdvisor busy or hanging?"
                return say("missing")
            }
            if (series && youngest != "") {
                reason = "series is stale since " spoken(youngest) ": nothing was scraped meanwhile"
                fix = "Prometheus does not get to scraping: its /targets page and its log."
                return say("missing")
            }
            if (series) return say("ok")
            look(group, lately_job[counted])
            if (may_be_absent != "" && state == "up") { reason = may_be_absent; return say("absent") }
            if (counted in any) {
                if (group == "containers") {
                    reason = "series are there, but none with a container name"
                    fix = "cAdvisor sees cgroups and not Docker: give it Docker\047s socket, /sys and /var/lib/docker (compose file)."
                } else {
                    reason = "value NaN"
                    fix = "What exposes it is at fault: look at its /metrics."
                }
                return say("missing")
            }
            lately = counted in lately_age ? "; last seen " spoken(lately_age[counted]) " ago" : ""
            fix = advice_start[group]
            if (state == "unknown") {
                reason = "no such series" lately ", and this server does not tell its targets"
                fix = "Have job " job " scraped: " advice_job[group]
            } else if (state == "none") {
                reason = "job " job " is not configured" lately
                fix = "prometheus.yml, scrape_configs: " advice_job[group]
            } else if (state == "others") {
                reason = "no target of job " job " is instance " instance lately
                fix = "The instances there are: /targets of Prometheus. Without --instance all count."
            } else if (state == "down") reason = "target " url " of job " job " is down: " error
            else if (state == "waiting") {
                reason = "target " url " of job " job " has not been scraped yet"
                fix = "Wait for one scrape_interval."
            } else if (lately != "") {
                reason = "series is stale since " spoken(lately_age[counted]) ", though job " job " is up"
                fix = own_fix != "" ? own_fix : advice_up[group]
            } else {
                reason = "no such series, though job " job " is up"
                fix = own_fix != "" ? own_fix : advice_up[group]
            }
            if (group == "n8n" && !index(require, " n8n ")) { say("absent"); return }
            if (group == "containers" && !index(require, " containers ") && dispatcher_there && !in_docker && asked_docker) {
                reason = "no model runs in a container here"
                return say("absent")
            }
            if (may_be_absent != "") return say("absent")
            say("missing")
        }
        BEGIN {
            require = ENVIRON["REQUIRE"]; instance = ENVIRON["INSTANCE"]
            default_job["host"] = "node"; like["host"] = "node"
            default_job["containers"] = like["containers"] = "cadvisor"
            default_job["models"] = default_job["dispatcher"] = like["models"] = like["dispatcher"] = "dispatcher"
            default_job["n8n"] = like["n8n"] = "n8n"
            advice_job["host"] = "job_name node, targets [HOST:9100] (node_exporter)"
            advice_job["containers"] = "job_name cadvisor, honor_timestamps: false, targets [HOST:8080] (cAdvisor)"
            advice_job["models"] = advice_job["dispatcher"] = "job_name dispatcher, targets [HOST:9435] (exporter.port)"
            advice_job["n8n"] = "job_name n8n, targets [HOST:5678], and N8N_METRICS=true for n8n"
            advice_start["host"] = "Start node_exporter, or correct its target in prometheus.yml."
            advice_start["containers"] = "Start cAdvisor (docker compose up -d cadvisor), or correct its target in prometheus.yml; where no model runs in a container, take the job out."
            advice_start["models"] = advice_start["dispatcher"] = "Start the dispatcher (scripts/run); or exporter.host and exporter.port of its configuration are not what prometheus.yml says."
            advice_start["n8n"] = "Start n8n with N8N_METRICS=true, or correct its target in prometheus.yml."
            advice_up["host"] = "Is it node_exporter (Linux, 1.0 or later), and is that collector on?"
            advice_up["containers"] = "Is it cAdvisor, and without --disable_metrics for it?"
            advice_up["models"] = advice_up["dispatcher"] = "Is that target the dispatcher\047s exporter, of the version this script came with?"
            advice_up["n8n"] = "Some metrics of n8n have a switch of their own: N8N_METRICS_INCLUDE_…; docs/n8n.md."
        }
        reading == "facts" {
            if ($1 == "present") { count[$2] += $4; jobs_of[$2] = jobs_of[$2] (jobs_of[$2] == "" ? "" : "\t") $3; if ($2 == "ollama_up") dispatcher_there = 1 }
            else if ($1 == "not_a_number") any[$2] = what_nan[$2] = 1
            else if ($1 == "lately") { if (!($2 in lately_age) || $4 + 0 < lately_age[$2]) { lately_age[$2] = $4 + 0; lately_job[$2] = $3 } }
            else if ($1 == "age") age_of[$2] = age_of[$3] = $4 + 0
            else if ($1 == "container_age") { if (container_age == "" || $4 + 0 < container_age) container_age = $4 + 0 }
            else if ($1 == "docker") in_docker = 1
            else if ($1 == "asked_docker") asked_docker = 1
            else if ($1 == "targets") targets_known = 1
            else if ($1 == "rules") rules_known = 1
            else if ($1 == "target") {
                targets++
                target_job[targets] = $2; target_instance[targets] = $3; target_url[targets] = $4
                target_health[targets] = $5; target_error[targets] = $7
                if ($6 != "") interval_of[$2] = seconds($6)
            } else if ($1 == "rule") {
                what = ($3 == "alerting" ? "alert" : "record") "," $2
                # Of several with one name, as an alert for two severities, one that fails is told.
                if (rule_health[what] != "err") { rule_health[what] = $4; rule_query[what] = $5; rule_error[what] = $6 }
            }
            next
        }
        {
            split($0, column, "|")
            group = column[1]; name = column[2]; kind = column[3]; may_be_absent = column[4]; own_fix = column[5]
            counted = kind == "h" ? name "_count" : name
            series = count[counted] + 0
            matchers = group == "rules" ? "" : group == "containers" ? ENVIRON["OF_CONTAINERS"] : ENVIRON["OF_OTHERS"]
            sub(/^,/, "", matchers)
            query = kind == "alert" ? "ALERTS{alertname=\"" name "\"}" : "count(" counted (matchers == "" ? "" : "{" matchers "}") ")"
            reason = fix = ""
            if (group == "rules") judge_rule()
            else judge_series()
        }' reading=facts "$work/facts" reading=table "$work/table" >"$work/verdict"
    # An awk that failed must not look like an all-clear.
    [ "$(grep -c . "$work/verdict")" = "$(grep -c . "$work/table")" ] || silent "awk could not judge the answers: $(command -v awk)"
}

selected() { case "$only" in "") return 0 ;; *) case " $only " in *" $1 "*) return 0 ;; *) return 1 ;; esac ;; esac; }

gather
judge
suspects=$(awk -F'\t' '$3 != "ok" && $4 != "alert" { printf "%s%s%s", sep, $2, ($4 == "h" ? "_count" : ""); sep = "|" }' "$work/verdict")
if cut -f 3 "$work/verdict" | grep -q '^missing$'; then
    gather_about_missing "$suspects"
    judge
fi

# ── telling ──

for group in $GROUPS_THERE; do
    if selected "$group"; then grep "^$group	" "$work/verdict"; fi
done >"$work/told"

if [ "$json" = 1 ]; then
    SHOWN=$shown awk -F'\t' '
        function text(value) { gsub(/\\/, "\\\\", value); gsub(/"/, "\\\"", value); return "\"" value "\"" }
        { name[NR] = $2; group[NR] = $1; status[NR] = $3; query[NR] = $6; reason[NR] = $7; fix[NR] = $8 }
        END {
            for (i = 1; i <= NR; i++) if (status[i] == "missing") { missing = missing sep text(name[i]); sep = ", " }
            print "{"
            print "  \"prometheus\": " text(ENVIRON["SHOWN"]) ","
            print "  \"ok\": " (missing == "" ? "true" : "false") ","
            print "  \"missing\": [" missing "],"
            print "  \"metrics\": ["
            for (i = 1; i <= NR; i++) {
                print "    {"
                print "      \"name\": " text(name[i]) ","
                print "      \"group\": " text(group[i]) ","
                print "      \"ok\": " (status[i] == "missing" ? "false" : "true") ","
                print "      \"present\": " (status[i] == "ok" ? "true" : "false") ","
                print "      \"optional\": " (status[i] == "absent" ? "true" : "false") ","
                print "      \"query\": " text(query[i]) ","
                print "      \"reason\": " (reason[i] == "" ? "null" : text(reason[i])) ","
                print "      \"fix\": " (fix[i] == "" || status[i] != "missing" ? "null" : text(fix[i]))
                print "    }" (i < NR ? "," : "")
            }
            print "  ]"
            print "}"
        }' "$work/told"
else
    printf '%s\n' "Prometheus at $shown"
    LC_ALL=C awk -F'\t' -v color="$color" -v verbose="$verbose" '
        function paint(how, words) { return color ? "\033[" how "m" words "\033[0m" : words }
        function wrapped(mark, words,   n, word, i, line) { # below the name, 80 columns; a long word is not cut
            n = split(words, word, / +/)
            line = mark
            for (i = 1; i <= n; i++) {
                if (length(line) + length(word[i]) + 1 > 74 && line != "   ") { print "    " paint("2", line); line = "   " }
                line = line " " word[i]
            }
            print "    " paint("2", line)
        }
        BEGIN {
            of["host"] = "node_exporter"; of["containers"] = "cAdvisor"; of["models"] = "dispatcher, ollama_*"
            of["dispatcher"] = "dispatcher"; of["rules"] = "prometheus/rules"; of["n8n"] = "n8n, optional"
        }
        FNR == NR { all[$1]++; if ($3 == "ok") there[$1]++; if ($3 == "absent") absent[$1]++; next }
        $1 != group {
            group = $1; for (why in told) delete told[why]
            head = there[group] + 0 " of " all[group] " there"
            if (absent[group]) head = head ", " absent[group] " may be absent"
            printf "\n%s%s\n", paint("1", sprintf("%-40s", group " (" of[group] ")")), head
        }
        {
            if ($3 == "ok") {
                seen = $4 == "alert" ? "loaded" : $5 + 0 " series"
                printf "  %s %-64s %11s\n", paint("32", "✓"), $2, seen
            } else {
                mark = $3 == "missing" ? paint("1;31", "✗") : paint("2", "–")
                # What was said of another one of the group is not said again.
                why = $3 == "missing" ? $7 "\t" $8 : $7
                printf "  %s %-64s %11s\n", mark, $2, ((why in told) ? "as above" : "")
                if (!(why in told)) {
                    wrapped("why", $7)
                    if ($3 == "missing") wrapped("fix", $8)
                }
                told[why] = told[$7] = 1
            }
            if (verbose) print "        " $6
        }' "$work/told" "$work/told" | sed 's/ *$//'
fi

# The groups of which everything is missing are named as such, of the others each metric.
summary=$(awk -F'\t' '
    { if (!($1 in all)) order[++groups] = $1; all[$1]++ }
    $3 == "missing" { missing++; lacks[$1]++; names[$1] = names[$1] (names[$1] == "" ? "" : ", ") $2 }
    $3 == "ok" { there[$1]++; ok++ }
    $3 == "absent" { absent++ }
    END {
        if (!missing) { printf "all there: %d metrics and rules%s", ok, (absent ? ", " absent " more may be absent" : ""); exit }
        for (i = 1; i <= groups; i++) if (lacks[order[i]]) {
            told = there[order[i]] ? names[order[i]] : "everything of " order[i] " (" lacks[order[i]] ")"
            line = line (line == "" ? "" : ", ") told
        }
        printf "missing: %s", line
    }' "$work/told")
failed=0
case $summary in missing:*) failed=1 ;; esac
if [ "$json" = 0 ]; then
    paint=32
    [ "$failed" = 0 ] || paint='1;31'
    [ "$color" = 0 ] && printf '\n%s\n' "$summary" || printf '\n\033[%sm%s\033[0m\n' "$paint" "$summary"
fi
exit "$failed"
