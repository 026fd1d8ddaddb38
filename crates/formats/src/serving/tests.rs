use super::*;

/// `metric{label="i"} 1`, for i from 0 to `n`.
fn numbered(metric: &str, label: &str, n: usize) -> String {
    (0..n)
        .map(|i| format!("{metric}{{{label}=\"{i}\"}} 1\n"))
        .collect()
}

fn shown(scrape: &Scrape) -> String {
    let line = |r: &ServingReading| {
        let value = match &r.value {
            ServingValue::Number(n) => format!("{n}"),
            ServingValue::Histogram(h) => {
                format!("{:.6} in {}, {:?} {:?}", h.sum, h.count, h.bounds, h.counts)
            }
        };
        format!(
            "{} {} {value}\n",
            r.metric.name(),
            r.model.as_deref().unwrap_or("-")
        )
    };
    let mut text: String = scrape.readings.iter().map(line).collect();
    if scrape.wrong + scrape.beyond > 0 {
        text += &format!("wrong {} beyond {}\n", scrape.wrong, scrape.beyond);
    }
    text
}

#[track_caller]
fn check(engine: Engine, text: &str, expected: &str) {
    let lines: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let scrape = decode_scrape(engine, text.as_bytes());
    assert_eq!(shown(&scrape).lines().collect::<Vec<_>>(), lines);
}

#[test]
fn vllm_is_read_engines_added_and_old_names_left_for_new_ones() {
    check(
        Engine::Vllm,
        include_str!("../../testdata/serving/vllm.txt"),
        "gen_ai.server.time_to_first_token meta-llama/Llama-3.1-8B-Instruct 4.550000 in 11, [0.1, 1.0] [7, 3, 1]
         gen_ai.server.time_per_output_token meta-llama/Llama-3.1-8B-Instruct 2.500000 in 100, [] []
         warptrace.serving.token.input meta-llama/Llama-3.1-8B-Instruct 8128
         warptrace.serving.request.running meta-llama/Llama-3.1-8B-Instruct 5
         warptrace.serving.request.queued meta-llama/Llama-3.1-8B-Instruct 7
         warptrace.serving.kv_cache.utilization meta-llama/Llama-3.1-8B-Instruct 0.82
         warptrace.serving.request.preemptions meta-llama/Llama-3.1-8B-Instruct 4
         warptrace.serving.request.succeeded meta-llama/Llama-3.1-8B-Instruct 15
         warptrace.serving.request.failed meta-llama/Llama-3.1-8B-Instruct 2",
    );
}

#[test]
fn sglang_is_read_and_a_rank_of_the_same_work_is_not_added_to_the_first() {
    check(
        Engine::Sglang,
        include_str!("../../testdata/serving/sglang.txt"),
        "gen_ai.server.time_to_first_token meta-llama/Llama-3.1-8B-Instruct 100.500000 in 30, [0.1] [10, 20]
         warptrace.serving.token.input meta-llama/Llama-3.1-8B-Instruct 8128902
         warptrace.serving.token.output meta-llama/Llama-3.1-8B-Instruct 7557572
         warptrace.serving.request.running meta-llama/Llama-3.1-8B-Instruct 172
         warptrace.serving.request.queued meta-llama/Llama-3.1-8B-Instruct 2826
         warptrace.serving.kv_cache.utilization meta-llama/Llama-3.1-8B-Instruct 0.28
         warptrace.serving.prefix_cache.hit_ratio meta-llama/Llama-3.1-8B-Instruct 0.0075
         warptrace.serving.request.preemptions meta-llama/Llama-3.1-8B-Instruct 6",
    );
}

#[test]
fn tgi_is_read_and_its_tokens_are_the_sums_of_its_histograms() {
    check(
        Engine::Tgi,
        include_str!("../../testdata/serving/tgi.txt"),
        "gen_ai.server.request.duration - 96.200000 in 148, [0.0001, 3.6] [0, 147, 1]
         warptrace.serving.batch.duration - 3.000000 in 100, [0.1] [98, 2]
         warptrace.serving.token.input - 74000
         warptrace.serving.request.queued - 2
         warptrace.serving.batch.size - 5
         warptrace.serving.request.succeeded - 148
         warptrace.serving.request.failed - 2",
    );
}

#[test]
fn tritons_microseconds_become_seconds_of_as_many_requests_as_succeeded() {
    check(
        Engine::Triton,
        include_str!("../../testdata/serving/triton.txt"),
        "gen_ai.server.request.duration my_model 4.000000 in 200, [] []
         warptrace.serving.request.queue.duration my_model 0.011110 in 161, [] []
         warptrace.serving.request.running tensorrt_llm 12
         warptrace.serving.request.queued my_model 4
         warptrace.serving.kv_cache.utilization tensorrt_llm 0.4875
         warptrace.serving.request.succeeded ensemble 0
         warptrace.serving.request.succeeded my_model 200
         warptrace.serving.request.failed my_model 3",
    );
}

#[test]
fn tritons_backend_for_vllm_is_read_by_vllms_names() {
    let text = "vllm:time_to_first_token_seconds_sum{model=\"m\",version=\"1\"} 2\n\
                vllm:time_to_first_token_seconds_count{model=\"m\",version=\"1\"} 4\n";
    check(
        Engine::Triton,
        text,
        "gen_ai.server.time_to_first_token m 2.000000 in 4, [] []",
    );
}

#[test]
fn names_with_an_underscore_for_the_colon_are_the_same() {
    let text = "vllm_num_requests_running{model_name=\"m\"} 1\nsglang_num_running_reqs 2\n";
    check(Engine::Vllm, text, "warptrace.serving.request.running m 1");
    check(
        Engine::Sglang,
        text,
        "warptrace.serving.request.running - 2",
    );
}

#[test]
fn what_cannot_be_is_left_out_and_counted() {
    check(
        Engine::Vllm,
        "vllm:prompt_tokens_total -1
vllm:generation_tokens_total NaN
vllm:num_preemptions_total inf
vllm:kv_cache_usage_perc 82
vllm:num_requests_running 1",
        "warptrace.serving.request.running - 1
         wrong 4 beyond 0",
    );
    // Buckets that shrink, a count below them, a bound that is none or comes twice, half a request, no sum.
    for wrong in [
        "_bucket{le=\"1\"} 5\n_bucket{le=\"2\"} 4\n_sum 1\n_count 5",
        "_bucket{le=\"1\"} 5\n_sum 1\n_count 4",
        "_bucket{le=\"1\"} 1\n_bucket{le=\"1.0\"} 1\n_sum 1\n_count 4",
        "_sum 1\n_count 0.5",
        "_count 1",
    ] {
        let text: String = wrong
            .lines()
            .map(|l| format!("tgi_request_duration{l}\n"))
            .collect();
        check(Engine::Tgi, &text, "wrong 1 beyond 0");
    }
    let bound = "tgi_request_duration_bucket{le=\"x\"} 1\ntgi_request_duration_sum 1\ntgi_request_duration_count 1";
    check(
        Engine::Tgi,
        bound,
        "gen_ai.server.request.duration - 1.000000 in 1, [] []\nwrong 1 beyond 0",
    );
}

#[test]
fn a_fraction_that_rounds_to_a_little_more_than_all_is_all() {
    check(
        Engine::Vllm,
        "vllm:kv_cache_usage_perc 1.0000001",
        "warptrace.serving.kv_cache.utilization - 1",
    );
}

#[test]
fn series_models_and_buckets_have_limits() {
    let running = "vllm:num_requests_running";
    let read = |engine, text: String| decode_scrape(engine, text.as_bytes());
    let scrape = read(Engine::Vllm, numbered(running, "engine", MAX_SERIES + 5));
    let all = ServingValue::Number(MAX_SERIES as f64);
    assert_eq!((&scrape.readings[0].value, scrape.beyond), (&all, 5));
    let scrape = read(
        Engine::Vllm,
        numbered(running, "model_name", MAX_MODELS + 5),
    );
    assert_eq!((scrape.readings.len(), scrape.beyond), (MAX_MODELS, 5));
    let buckets = numbered("tgi_request_duration_bucket", "le", MAX_BUCKETS + 5);
    let scrape = read(Engine::Tgi, buckets);
    assert_eq!((scrape.beyond, scrape.wrong), (5, 1));
    let long = format!(
        "{running}{{model_name=\"{}\"}} 1",
        "m".repeat(MAX_MODEL + 1)
    );
    let scrape = read(Engine::Vllm, long);
    assert_eq!((scrape.readings.len(), scrape.beyond), (0, 1));
}

#[test]
fn a_page_that_is_not_an_engines_says_so_by_its_counts() {
    let scrape = decode_scrape(Engine::Vllm, b"<html>\n<body>login</body>\n");
    assert_eq!(
        (scrape.readings.len(), scrape.samples, scrape.bad_lines),
        (0, 0, 2)
    );
    let scrape = decode_scrape(Engine::Vllm, b"go_goroutines 7\nnot a sample\n");
    assert_eq!(
        (scrape.readings.len(), scrape.samples, scrape.bad_lines),
        (0, 1, 1)
    );
}
