//! Medians as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::measure::Figures;
use super::{Design, Setting};

/// A column: its name in JSON, its head in the table, digits behind the point, and how it is read.
type Column = (&'static str, &'static str, usize, fn(&Figures) -> f64);

const COLUMNS: [Column; 7] = [
    ("tcp1_gbps", "TCP x1 Gb/s", 2, |figures| figures.tcp1_gbps),
    ("tcp4_gbps", "TCP x4 Gb/s", 2, |figures| figures.tcp4_gbps),
    ("pps", "packets/s", 0, |figures| figures.pps),
    ("flood_pps", "flooded", 0, |figures| figures.flood_pps),
    ("rtt_us", "RTT us", 1, |figures| figures.rtt_us),
    ("rtt_p99_us", "p99 us", 1, |figures| figures.rtt_p99_us),
    ("cpu_s_per_gbit", "CPU s/Gbit", 3, |figures| figures.cpu_s_per_gbit),
];

/// Everything measured.
#[derive(Debug, Default)]
pub struct Report {
    rounds: BTreeMap<Setting, BTreeMap<Design, Vec<Figures>>>,
}

impl Report {
    pub fn add(&mut self, setting: Setting, design: Design, figures: Figures) {
        self.rounds.entry(setting).or_default().entry(design).or_default().push(figures);
    }

    /// `{"settings": {"default": {"raw": {"tcp1_gbps": ...}}}}`, medians.
    pub fn json(&self) -> Value {
        let row = |rounds: &Vec<Figures>| {
            COLUMNS
                .iter()
                .map(|(name, _, _, read)| ((*name).to_owned(), json!(median(rounds, *read))))
                .collect::<Map<_, _>>()
        };
        let designs = |designs: &BTreeMap<Design, Vec<Figures>>| {
            designs.iter().map(|(design, rounds)| (design.name().to_owned(), row(rounds).into())).collect::<Map<_, _>>()
        };
        let settings = self.rounds.iter().map(|(setting, all)| (setting.name().to_owned(), designs(all).into()));
        json!({"settings": settings.collect::<Map<String, Value>>()})
    }

    /// Medians, and in brackets the ratio to kernel VXLAN in the same run.
    pub fn table(&self) -> String {
        let mut text = String::from("medians; in brackets the ratio to kernel VXLAN in the same run\n");
        for (setting, designs) in &self.rounds {
            let _ = write!(text, "\n{:<14}", setting.name());
            for (_, head, _, _) in COLUMNS {
                let _ = write!(text, " {head:>18}");
            }
            text.push('\n');
            let base = designs.get(&Design::Vxlan);
            for (design, rounds) in designs {
                let _ = write!(text, "{:<14}", design.name());
                for (_, _, digits, read) in COLUMNS {
                    let value = median(rounds, read);
                    let ratio = base.map(|base| value / median(base, read)).filter(|ratio| ratio.is_finite());
                    let ratio = ratio.map_or_else(String::new, |ratio| format!(" [{ratio:.2}]"));
                    let _ = write!(text, " {:>18}", format!("{value:.digits$}{ratio}"));
                }
                text.push('\n');
            }
        }
        text
    }
}

fn median(rounds: &[Figures], read: fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(read).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(tcp1_gbps: f64) -> Figures {
        Figures {
            tcp1_gbps,
            tcp4_gbps: 2.0,
            pps: 3.0,
            flood_pps: 4.0,
            rtt_us: 5.0,
            rtt_p99_us: 6.0,
            cpu_s_per_gbit: 0.5,
        }
    }

    #[test]
    fn medians_and_ratios_are_reported() {
        let mut report = Report::default();
        for value in [9.0, 1.0, 6.0] {
            report.add(Setting::Gro, Design::Kernel, figures(value));
        }
        for value in [2.0, 4.0] {
            report.add(Setting::Gro, Design::Vxlan, figures(value));
        }
        let json = report.json();
        assert_eq!(json["settings"]["gro"]["tincan_kernel"]["tcp1_gbps"], 6.0);
        assert_eq!(json["settings"]["gro"]["vxlan"]["tcp1_gbps"], 3.0);
        assert_eq!(json["settings"]["gro"]["vxlan"]["cpu_s_per_gbit"], 0.5);
        let table = report.table();
        assert!(table.contains("6.00 [2.00]") && table.contains("3.00 [1.00]"), "{table}");
    }
}
