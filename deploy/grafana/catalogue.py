"""The five dashboards. `python -m deploy.grafana.build` writes them as JSON; figures that alerts look at are the recorded ones."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Row

_ASKED = 'route!~"/health.*|/metrics|/openapi.json"'


def _p(quantile: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def _rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))" if where else (
        f"sum by ({by}) (rate({metric}[$__rate_interval]))"
    )  # fmt: skip


def _share(part: str, whole: str) -> str:
    return f"sum(rate({part}[$__rate_interval])) / sum(rate({whole}[$__rate_interval]))"


_BREAKERS = ((0, "closed"), (1, "half-open"), (2, "open"))

OVERVIEW = Dashboard(
    "repliq-overview", "Repliq: overview", "Whether users get answers, and if not, where to look.",
    (
        Row("Do users get answers?", (
            Panel("API available, 1 h", "Share of answers that are not 5xx. The objective is 99.9 %.",
                  (('1 - repliq:errors:ratio_rate1h{slo="api"}', "API"),), "percentunit", "stat", 0.999, True, 6, 5),
            Panel("Answers given, 1 h", "Share of ended requests that did not end in an error, callers' own mistakes among them.",
                  (('1 - repliq:errors:ratio_rate1h{slo="answers"}', "answers"),), "percentunit", "stat", 0.99, True, 6, 5),
            Panel("Time of 95 %", "95 % of chat requests take no longer, their models' time included; a stream counts to its first byte.",
                  (("repliq:chat_seconds:p95_5m", "p95"),), "s", "stat", 3, width=6, height=5),
            Panel("Alerts that fire", "Those that wake somebody, and the others.",
                  (('count(ALERTS{alertstate="firing", severity="page"}) or vector(0)', "page"),
                   ('count(ALERTS{alertstate="firing", severity="ticket"}) or vector(0)', "ticket")),
                  "short", "stat", 1, width=6, height=5),
        )),
        Row("Traffic, errors, time, fullness", (
            Panel("Requests", "What callers ask for; neither probes nor Prometheus.",
                  (("sum by (route) (repliq:api_requests:rate5m)", "{{route}}"),), "reqps"),
            Panel("Errors of the API", "5xx by status. 429 is a limit that does its work, and no error.",
                  (('sum by (status) (repliq:api_requests:rate5m{status=~"5.."}) or vector(0)', "{{status}}"),), "reqps"),
            Panel("Time of chat requests", "Half and 95 % of them take no longer.",
                  (("repliq:chat_seconds:p95_5m", "p95"),
                   ('histogram_quantile(0.5, sum by (le) (rate(dialog_api_request_duration_seconds_bucket{method="POST", '
                    'route=~"/v1/chat/.*|/v1/dialogs/<dialog>/reply"}[$__rate_interval])))', "p50")), "s", alarm=3),
            Panel("Requests that wait", "For a task of theirs; at most API_THREADS less 64 a process.",
                  (("sum(api_waiters)", "waiting"),)),
            Panel("Age of the oldest task", "Grows where workers, or the provider's limits, do not keep up.",
                  (("repliq:task_oldest_age_seconds:max", "{{queue}}"),), "s", alarm=30),
            Panel("Memory of Redis", "In use, and what it may use (rules/limits.yml).",
                  (("repliq:redis_memory_bytes:max", "used"), ("repliq:limit:redis_memory_bytes", "limit")), "bytes"),
        )),
        Row("Error budget", (
            Panel("How fast the budget is used", "1: all of it in a month. Above 14.4 for an hour or 6 for six somebody is woken.",
                  (("repliq:errors:ratio_rate1h / on (slo) repliq:slo:error_budget", "{{slo}}, 1 h"),
                   ("repliq:errors:ratio_rate6h / on (slo) repliq:slo:error_budget", "{{slo}}, 6 h")), alarm=6, width=12),
            Panel("What is left of three days' budget", "Below nothing: more failed than may.",
                  (("1 - repliq:errors:ratio_rate3d / on (slo) repliq:slo:error_budget", "{{slo}}"),), "percentunit",
                  alarm=0, low_is_bad=True, width=12),
        )),
        Row("Which part", (
            Panel("Scraped", "Each process that Prometheus asks.",
                  (('up{job=~"repliq-.*"}', "{{job}} {{instance}}"),), "short", "stat", 1, True, 6, 5,
                  ((0, "away"), (1, "there"))),
            Panel("Workers", "That have shown themselves in Redis within ten seconds.",
                  (("max(workers_live)", "workers"),), "short", "stat", 1, True, 6, 5),
            Panel("Breakers", "The worst of a provider's models.",
                  (("repliq:llm_circuit_state:max", "{{provider}}"),), "short", "stat", 1, False, 6, 5, _BREAKERS),
            Panel("Up since", "When the oldest process of the API began.",
                  (("1000 * min(dialog_service_start_time_seconds)", "began"),), "dateTimeFromNow", "stat", None, False, 6, 5),
        )),
    ),
)  # fmt: skip

CHAT = Dashboard(
    "repliq-chat", "Repliq: chat and models", "What is asked of models, how they answer, and what happens when they do not.",
    (
        Row("Requests", (
            Panel("Ended requests", "By how they ended.", ((_rate("chat_requests_total", "status"), "{{status}}"),), "reqps"),
            Panel("Ended requests by model", "A model that nobody configured is `other`.",
                  ((_rate("chat_requests_total", "provider, model"), "{{provider}}/{{model}}"),), "reqps"),
            Panel("Refused by a limit", "By the limit; before any model was asked.",
                  ((_rate("chat_limit_refusals_total", "code"), "{{code}}"),), "reqps"),
            Panel("Admission", "All limits in one step of Redis.",
                  (("repliq:limit_check_seconds:p95_5m", "p95"), (_p(0.5, "limit_check_seconds"), "p50")), "s", alarm=0.05),
            Panel("Tokens", "Read and written by models.", ((_rate("chat_tokens_total", "kind"), "{{kind}}"),), "ops"),
            Panel("Answers from the cache", "By where they were found; fixed ones are the bot's own.",
                  ((_rate("chat_cache_hits_total", "source"), "{{source}}"),), "ops"),
        )),
        Row("Providers", (
            Panel("Calls", "By what came of them.",
                  ((_rate("llm_requests_total", "provider, status"), "{{provider}} {{status}}"),), "reqps"),
            Panel("Time of calls", "95 % take no longer.", ((_p(0.95, "llm_request_duration_seconds", "provider"), "{{provider}}"),), "s"),
            Panel("Time to the first token", "Of streams; 95 % take no longer.",
                  ((_p(0.95, "llm_time_to_first_token_seconds", "provider"), "{{provider}}"),), "s"),
            Panel("Breakers", "0 closed, 1 half-open, 2 open: the worst of a provider's models.",
                  (("repliq:llm_circuit_state:max", "{{provider}}"),), alarm=1, names=_BREAKERS),
            Panel("Calls that were not let through", "The breaker open, the places full, or a limit a minute reached.",
                  ((_rate("llm_gate_refusals_total", "provider, reason"), "{{provider}} {{reason}}"),), "ops"),
            Panel("Another target answered", "From which one to which.",
                  ((_rate("llm_fallbacks_total", "from, to"), "{{from}} → {{to}}"),), "ops"),
            Panel("Breakers opened", "In the last hour.",
                  (("sum by (provider, model) (increase(llm_circuit_opened_total[1h]))", "{{provider}}/{{model}}"),)),
            Panel("Calls repeated", "Tasks sent again, and calls made again.",
                  ((_rate("task_retries_total", "task"), "{{task}}"),), "ops"),
            Panel("Users' contexts", "From their owners' servers.",
                  ((_rate("user_context_requests_total", "result"), "{{result}}"),), "ops"),
        )),
    ),
)  # fmt: skip

QUEUE = Dashboard(
    "repliq-queue", "Repliq: queue and workers", "How long tasks wait, how long they run, and what PostgreSQL is still to be told.",
    (
        Row("Queue", (
            Panel("Tasks that wait", "`chat_held_back` waits behind a user's or bot's window. The others are beat's snapshot.",
                  (("repliq:task_queue_depth:max", "{{queue}}"),)),
            Panel("Age of the oldest task", "The measure to scale workers by.",
                  (("repliq:task_oldest_age_seconds:max", "{{queue}}"),), "s", alarm=30),
            Panel("Time in the queue", "From sending to claiming; 95 % wait no longer.",
                  ((_p(0.95, "task_queue_wait_seconds", "queue"), "{{queue}}"),), "s"),
        )),
        Row("Workers", (
            Panel("Tasks that run", "At most WORKER_THREADS a process.", (("sum by (queue) (task_in_flight)", "{{queue}}"),)),
            Panel("Time of tasks", "95 % take no longer.", ((_p(0.95, "task_duration_seconds", "task"), "{{task}}"),), "s"),
            Panel("Tasks ended", "By how.", ((_rate("task_duration_seconds_count", "task, status"), "{{task}} {{status}}"),), "ops"),
        )),
        Row("Written behind", (
            Panel("Length of outboxes", "Rows that wait in Redis for PostgreSQL, or for the broker of events.",
                  (("repliq:outbox_length:max", "{{stream}}"),)),
            Panel("Lag of outboxes", "How long the oldest row has waited.", (("repliq:outbox_lag_seconds:max", "{{stream}}"),),
                  "s", alarm=300),
            Panel("Time to save a batch", "95 % take no longer.",
                  (("repliq:history_save_seconds:p95_5m", "{{stream}}"),), "s", alarm=0.1),
            Panel("Events counted", "New, known already, or past their bot's retention.",
                  ((_rate("analytics_events_total", "result"), "{{result}}"),), "ops"),
            Panel("Events of the broker", "Confirmed by it; taken from it; put aside as dead.",
                  (("sum(rate(events_published_total[$__rate_interval]))", "published"),
                   (_rate("events_consumed_total", "result"), "{{result}}")), "ops"),
            Panel("Told past retention", "Requests whose day was gone before they were told of, in the last hour.",
                  (("sum(increase(history_past_retention_total[1h]))", "requests"),)),
        )),
        Row("Beat and webhooks", (
            Panel("Since an entry of beat ran", "The backstop of outboxes runs every 5 s.",
                  (("time() - max by (entry) (beat_last_run_timestamp_seconds)", "{{entry}}"),), "s"),
            Panel("Webhooks", "What came of them.", ((_rate("webhook_deliveries_total", "result"), "{{result}}"),), "ops"),
            Panel("Webhooks that wait, and their attempts' time", "95 % of attempts take no longer.",
                  (("max(webhook_deliveries_pending)", "pending"), (_p(0.95, "webhook_attempt_seconds"), "p95 of attempts, s"))),
        )),
    ),
)  # fmt: skip

DIALOGS = Dashboard(
    "repliq-dialogs", "Repliq: dialogs and Redis", "Messages, where their context came from, and how Redis does.",
    (
        Row("Dialogs", (
            Panel("Messages", "Appended to dialogs.", ((_rate("dialog_messages_total", "role"), "{{role}}"),), "ops"),
            Panel("Contexts found in Redis", "The rest were loaded from PostgreSQL.",
                  ((_share('dialog_context_cache_total{result="hit"}', "dialog_context_cache_total"), "found"),), "percentunit"),
            Panel("Dialogs cleaned", "That left Redis, or were past their retention.",
                  ((_rate("dialogs_cleaned_total", "how"), "{{how}}"),), "ops"),
        )),
        Row("Redis", (
            Panel("Memory", "In use, and what it may use (rules/limits.yml).",
                  (("repliq:redis_memory_bytes:max", "used"), ("repliq:limit:redis_memory_bytes", "limit")), "bytes"),
            Panel("Scripts", "Run, by which.", ((_rate("dialog_redis_operations_total", "script"), "{{script}}"),), "ops"),
            Panel("Scripts that failed", "By which.",
                  ((_rate("dialog_redis_operations_total", "script", 'status="error"') + " > 0 or vector(0)", "{{script}}"),), "ops"),
            Panel("Time of scripts", "As their callers see it, the network included.",
                  ((_p(0.99, "dialog_redis_operation_duration_seconds"), "p99"),
                   (_p(0.5, "dialog_redis_operation_duration_seconds"), "p50")), "s", alarm=0.025),
            Panel("The slowest scripts", "Five of them; 99 % take no longer.",
                  ((f"topk(5, {_p(0.99, 'dialog_redis_operation_duration_seconds', 'script')})", "{{script}}"),), "s"),
            Panel("Answers looked for in the cache", "Found, and not.",
                  ((_rate("chat_cache_requests_total", "result"), "{{result}}"),), "ops"),
        )),
        Row("Processes", (
            Panel("Memory", "Of the process that told.", (("process_resident_memory_bytes", "{{job}} {{instance}}"),), "bytes"),
            Panel("CPU", "Of the process that told; 1 is a core.",
                  (("rate(process_cpu_seconds_total[$__rate_interval])", "{{job}} {{instance}}"),)),
            Panel("Open files", "Of the process that told, and how many it may have.",
                  (("process_open_fds", "{{job}} {{instance}}"), ("process_max_fds", "limit {{instance}}"))),
        )),
    ),
)  # fmt: skip

COST = Dashboard(
    "repliq-cost", "Repliq: cost and users", "What answers cost, who is there, and whom budgets hold back.",
    (
        Row("Cost", (
            Panel("An hour's cost", "Of all bots together, and where the alert is (rules/limits.yml).",
                  (("sum(increase(chat_cost_usd_total[1h]))", "cost"), ("repliq:limit:cost_usd_per_hour", "limit")), "currencyUSD"),
            Panel("An hour's cost by model", "Answers of models without a price are not in it.",
                  (("sum by (provider, model) (increase(chat_cost_usd_total[1h]))", "{{provider}}/{{model}}"),), "currencyUSD"),
            Panel("Answers without a price", "In the last hour, by model.",
                  (("sum by (model) (increase(llm_price_unknown_total[1h])) or vector(0)", "{{model}}"),)),
            Panel("Cost of a request", "The mean of the last hour.",
                  (("sum(increase(chat_cost_usd_total[1h])) / sum(increase(chat_requests_total[1h]))", "mean"),), "currencyUSD"),
            Panel("Tokens by model", "Read and written.", ((_rate("chat_tokens_total", "model, kind"), "{{model}} {{kind}}"),), "ops"),
            Panel("Tokens embedded for the cache", "Their cost is part of the cost above.",
                  ((_rate("chat_cache_embedding_tokens_total", "job"), "tokens"),), "ops"),
        )),
        Row("Budgets", (
            Panel("Refused by a budget", "By whose.", ((_rate("budget_refusals_total", "scope"), "{{scope}}"),), "ops"),
            Panel("Budgets of which so much was spent", "In the last day.",
                  (("sum by (percent) (increase(budget_alerts_total[1d]))", "{{percent}} %"),)),
            Panel("Past their reservation, or of unknown cost", "Answers under a budget, in the last day.",
                  (("sum(increase(budget_overruns_total[1d]))", "cost more"),
                   ("sum(increase(budget_unknown_costs_total[1d]))", "cost unknown"))),
        )),
        Row("Users", (
            Panel("Active users", "Of the day (from midnight of UTC), of 7 and of 30 days.",
                  (("max by (window) (dialog_active_users)", "{{window}}"),), width=12),
            Panel("Users who came back", "Of those of the window before; not a number where there was nobody.",
                  (("max by (window) (dialog_user_retention_rate)", "{{window}}"),), "percentunit", width=12),
        )),
    ),
)  # fmt: skip

ALL = (OVERVIEW, CHAT, QUEUE, DIALOGS, COST)
