//! How the rate depends on the place: a factor for each block, layer, kind of page and end of a block.
//!
//! The factors of a Poisson mean that is a product are found by iterative proportional fitting (Deming and Stephan, 1940): each
//! group's factor is its errors over those expected without it, in turn. The invariant: each kind's factors have the mean 1
//! over the places of a block, so that the rates stay those of the mean place.

use super::curve::{self, Row, Vector};
use crate::reliability::{Chip, ErrorParams, Measurement, chip::profile_place};
use std::collections::BTreeMap;

/// A kind of place and its groups' factors.
#[derive(Debug, Clone, Default)]
pub(super) struct Kind {
    /// Each row's group; `None` where the row does not say, or the kind has but one group.
    group: Vec<Option<u32>>,
    factors: BTreeMap<u32, f64>,
    /// What is known of each factor: errors it was found from, lessened by their dispersion.
    weight: BTreeMap<u32, f64>,
    /// Which groups the mean that is made 1 is of, and how much of a block each is; empty for all alike.
    shares: Vec<(u32, f64)>,
}

impl Kind {
    fn new(group: Vec<Option<u32>>) -> Kind {
        let factors: BTreeMap<u32, f64> = group.iter().flatten().map(|group| (*group, 1.0)).collect();
        if factors.len() < 2 {
            return Kind::default();
        }
        Kind { group, factors, ..Kind::default() }
    }

    /// Makes the mean of some groups 1; `of` is given the first of all.
    fn relative_to(mut self, of: impl Fn(u32) -> Vec<(u32, f64)>) -> Kind {
        self.shares = self.factors.keys().next().map_or_else(Vec::new, |first| of(*first));
        self
    }

    pub(super) fn is_told(&self) -> bool {
        !self.factors.is_empty()
    }

    pub(super) fn factor(&self, group: u32) -> f64 {
        self.factors.get(&group).copied().unwrap_or(1.0)
    }

    fn of_row(&self, row: usize) -> f64 {
        self.group.get(row).copied().flatten().map_or(1.0, |group| self.factor(group))
    }

    /// Finds each group's factor from what the others leave, and makes their mean 1.
    fn fit(&mut self, rows: &mut [Row], at: &Vector, dispersion: f64) {
        let mut sums: BTreeMap<u32, (f64, f64, f64)> = BTreeMap::new();
        for (row, group) in rows.iter().zip(&self.group) {
            let Some(group) = group else { continue };
            let mean = row.expected(at).0;
            let spread = 1.0 + row.dispersion(dispersion) * mean;
            let sum = sums.entry(*group).or_default();
            // Weighted as in the likelihood, so that rows of many scattered errors do not drown the rest.
            sum.0 += row.errors as f64 / spread;
            sum.1 += mean / spread;
            sum.2 += mean / spread;
        }
        for (group, (errors, expected, weight)) in sums {
            if let Some(factor) = self.factors.get_mut(&group) {
                *factor *= (errors.max(0.5) / expected.max(1e-300)).clamp(1e-3, 1e3);
            }
            self.weight.insert(group, weight);
        }
        let unit = match &self.shares[..] {
            [] => self.factors.values().sum::<f64>() / self.factors.len().max(1) as f64,
            shares => shares.iter().map(|(group, share)| share * self.factor(*group)).sum(),
        };
        self.factors.values_mut().for_each(|factor| *factor /= unit);
    }
}

/// The kinds of places.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) blocks: Kind,
    pub(super) layers: Kind,
    pub(super) page_types: Kind,
    /// Group 1: the word lines at the ends of a block; 0: the others.
    pub(super) edges: Kind,
    /// Group 0: the rows with a place; others: the sums over places of each table, whose places have a mean of their own.
    sums: Kind,
}

impl Places {
    /// The places of measurements of a chip shaped as `chip`.
    pub(super) fn new(measured: &[Measurement], chip: &Chip) -> Places {
        let params = chip.params();
        let pages = |group: &dyn Fn(u32) -> Option<u32>| {
            Kind::new(measured.iter().map(|row| row.page.and_then(group)).collect())
        };
        let wordlines = params.pages_per_block.div_ceil(params.bits_per_cell);
        let edge = |page: u32| {
            let wordline = chip.place(page).wordline;
            u32::from(wordline.min(wordlines.saturating_sub(1 + wordline)) < params.edge_wordlines)
        };
        let pages_of_edges = (0..params.pages_per_block).filter(|page| edge(*page) == 1).count();
        let edges = pages_of_edges as f64 / f64::from(params.pages_per_block);
        let sums = measured.iter().map(|row| match (row.block, row.page) {
            (None, None) => Some(row.source.saturating_add(1)),
            _ => Some(0),
        });
        Places {
            blocks: Kind::new(measured.iter().map(|row| row.block).collect()),
            layers: pages(&|page| (params.layers > 1).then(|| chip.place(page).layer)),
            page_types: pages(&|page| Some(chip.place(page).page_type)),
            // Relative to the rows with places, or to the first table if there are none.
            sums: Kind::new(sums.collect()).relative_to(|first| vec![(first, 1.0)]),
            edges: pages(&|page| (params.edge_wordlines > 0).then(|| edge(page)))
                .relative_to(|_| vec![(0, 1.0 - edges), (1, edges)]),
        }
    }

    /// In the order in which they are fitted: kinds of pages before layers, so that they are told even where every layer was
    /// measured on one page only.
    fn kinds(&mut self) -> [&mut Kind; 5] {
        [&mut self.page_types, &mut self.edges, &mut self.layers, &mut self.blocks, &mut self.sums]
    }

    /// Finds all factors, given the curve.
    pub(super) fn fit(&mut self, rows: &mut [Row], at: &Vector, dispersion: f64) {
        for _ in 0..3 {
            for at_kind in 0..5 {
                let kind = &mut *self.kinds()[at_kind];
                if kind.is_told() {
                    kind.fit(rows, at, dispersion);
                    self.apply(rows);
                }
            }
        }
    }

    /// Gives each row the factor of its place.
    fn apply(&self, rows: &mut [Row]) {
        for (i, row) in rows.iter_mut().enumerate() {
            row.place = [&self.blocks, &self.layers, &self.page_types, &self.edges, &self.sums]
                .iter()
                .map(|kind| kind.of_row(i))
                .product();
        }
    }

    /// Puts what was found into parameters; says which of them.
    pub(super) fn put_into(&self, params: &mut ErrorParams) -> Vec<&'static str> {
        let mut fitted = Vec::new();
        if self.blocks.is_told() {
            params.block_sigma = spread(&self.blocks, |_| 0.0).min(2.0);
            fitted.push("block_sigma");
        }
        if self.layers.is_told() {
            let points = profile(&self.layers, params);
            let layers = params.layers;
            let along = |layer: u32| {
                let (at, share) = profile_place(points.len(), layer, layers);
                let low = points.get(at).map_or(0.0, |point| point.ln());
                low + (points.get(at + 1).map_or(low, |point| point.ln()) - low) * share
            };
            params.layer_sigma = spread(&self.layers, along).min(2.0);
            params.layer_profile = points.clone();
            fitted.extend(["layer_profile", "layer_sigma"]);
        }
        if self.page_types.is_told() {
            params.page_type_factors =
                (0..params.bits_per_cell).map(|kind| self.page_types.factor(kind).clamp(1e-3, 1e3)).collect();
            fitted.push("page_type_factors");
        }
        if self.edges.is_told() {
            params.edge_factor = (self.edges.factor(1) / self.edges.factor(0)).clamp(0.01, 100.0);
            fitted.push("edge_factor");
        }
        fitted
    }
}

/// The standard deviation of the logarithms of a kind's factors about `trend`, without what is the measurement's own.
fn spread(kind: &Kind, trend: impl Fn(u32) -> f64) -> f64 {
    let rest: Vec<f64> = kind.factors.iter().map(|(group, factor)| factor.ln() - trend(*group)).collect();
    let n = rest.len() as f64;
    let mean = rest.iter().sum::<f64>() / n;
    let variance = rest.iter().map(|rest| (rest - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // The variance of the logarithm of a count is one over it.
    let noise = kind.weight.values().map(|weight| 1.0 / weight.max(1.0)).sum::<f64>() / n;
    (variance - noise).max(0.0).sqrt()
}

/// The profile's points: least squares of the layers' logarithms, weighted, on lines between the points.
fn profile(layers: &Kind, params: &ErrorParams) -> Vec<f64> {
    let wanted = if params.layer_profile.len() < 2 { 9 } else { params.layer_profile.len() };
    let points = wanted.min(layers.factors.len());
    let mut matrix = vec![vec![0.0; points]; points];
    let mut right = vec![0.0; points];
    for (layer, factor) in &layers.factors {
        let weight = layers.weight.get(layer).copied().unwrap_or(1.0);
        let (at, share) = profile_place(points, *layer, params.layers);
        for (i, a) in [(at, 1.0 - share), (at + 1, share)] {
            if let Some(right) = right.get_mut(i) {
                *right += weight * a * factor.ln();
            }
            for (j, b) in [(at, 1.0 - share), (at + 1, share)] {
                if let Some(cell) = matrix.get_mut(i).and_then(|row| row.get_mut(j)) {
                    *cell += weight * a * b;
                }
            }
        }
    }
    // A point that no layer is near stays at 1.
    let little = 1e-9 + 1e-9 * matrix.iter().zip(0..).map(|(row, i): (&Vec<f64>, usize)| row[i]).sum::<f64>();
    for (i, row) in matrix.iter_mut().enumerate() {
        row[i] += little;
    }
    let logarithms = curve::solve(&matrix, &right).unwrap_or_else(|| vec![0.0; points]);
    logarithms.iter().map(|ln| ln.exp().clamp(1e-3, 1e3)).collect()
}
