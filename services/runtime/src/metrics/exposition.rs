//! From OpenMetrics text to Prometheus text.
//!
//! The two differ where it matters to readers of the older format: a counter's family is named without `_total` in
//! OpenMetrics and with it in Prometheus text, an info metric is a gauge named `_info`, and there are no `# UNIT` lines
//! and no `# EOF`. Without this, `promtool check metrics` and scrapers of the older format lose the counters' types.

/// Rewrites a whole OpenMetrics exposition, as prometheus-client writes it: HELP, then TYPE, then samples.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest.split_once(' ').unwrap_or((rest, "")));
        } else if let Some((family, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, words)) = help.take().filter(|(name, _)| *name == family) {
                text.push_str(&format!("# HELP {family}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {family}{suffix} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::to_prometheus;

    #[test]
    fn families_are_renamed_as_the_older_format_wants() {
        let openmetrics = "# HELP a_calls Calls made.\n# TYPE a_calls counter\na_calls_total{code=\"OK\"} 1\n\
            # HELP a_build Build.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
            # HELP a_wait_seconds Wait.\n# TYPE a_wait_seconds histogram\n# UNIT a_wait_seconds seconds\n\
            a_wait_seconds_sum 0.5\n# EOF\n";
        let prometheus = "# HELP a_calls_total Calls made.\n# TYPE a_calls_total counter\n\
            a_calls_total{code=\"OK\"} 1\n\
            # HELP a_build_info Build.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
            # HELP a_wait_seconds Wait.\n# TYPE a_wait_seconds histogram\na_wait_seconds_sum 0.5\n";
        assert_eq!(to_prometheus(openmetrics), prometheus);
    }
}
