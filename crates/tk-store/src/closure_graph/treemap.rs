//! A picture of what paths weigh: a treemap, in which areas are sizes.

use super::{ClosureGraph, ClosureSizes};
use std::{cmp::Reverse, fmt::Write};

/// A picture of a closure as nested tiles, in which each path lies within the one that keeps it (see
/// [`ClosureSizes::keeper`]) and has the area of its added size. Tiles are laid out as squarely as can be (Bruls, Huizing
/// and van Wijk 2000); those too small to be seen are left out.
#[derive(Debug, Clone)]
pub struct Treemap {
    tiles: Vec<TreemapTile>,
    size: [f64; 2],
}

/// One tile: its place and its size in pixels.
#[derive(Debug, Clone, Copy)]
struct TreemapTile {
    node: u32,
    /// How many tiles it lies within.
    depth: usize,
    at: [f64; 2],
    size: [f64; 2],
}

impl Treemap {
    /// The picture of `sizes`, as wide and as high as `size` in pixels.
    pub fn new(sizes: &ClosureSizes, size: [f64; 2]) -> Self {
        let mut below = vec![Vec::new(); sizes.own.len()];
        let mut first = Vec::new();
        for (node, keeper) in (0u32..).zip(&sizes.keeper) {
            match keeper {
                Some(keeper) => below[*keeper as usize].push(node),
                None => first.push(node),
            }
        }
        let mut tiles = Vec::new();
        // What is to be laid out within which tile, and how deep that is.
        let mut todo = vec![(first, 0, [0.0, 0.0], size)];
        while let Some((mut nodes, depth, at, size)) = todo.pop() {
            nodes.retain(|node| sizes.added[*node as usize] > 0);
            nodes.sort_by_key(|node| Reverse(sizes.added[*node as usize]));
            let weights = nodes.iter().map(|node| sizes.added[*node as usize] as f64);
            let weights: Vec<f64> = weights.collect();
            for (node, [at, size]) in nodes.into_iter().zip(squarified(&weights, at, size)) {
                if size[0] * size[1] < MIN_AREA {
                    continue;
                }
                tiles.push(TreemapTile {
                    node,
                    depth,
                    at,
                    size,
                });
                // Its own size stays free at the top, so that what is within has its area too.
                let own = sizes.own[node as usize] as f64 / sizes.added[node as usize] as f64;
                let free = size[1] * own;
                let within = std::mem::take(&mut below[node as usize]);
                let rest = [size[0], size[1] - free];
                todo.push((within, depth + 1, [at[0], at[1] + free], rest));
            }
        }
        Treemap { tiles, size }
    }

    /// The picture as SVG. Each tile's title, which programs show when one points at it, is what `title` gives; it and
    /// the names have no characters that mean something in XML.
    pub fn to_svg(&self, graph: &ClosureGraph<'_>, title: impl Fn(u32) -> String) -> String {
        let [width, height] = self.size;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n"
        );
        for tile in &self.tiles {
            let ([x, y], [width, height]) = (tile.at, tile.size);
            let hue = 205 + 47 * tile.depth % 360;
            // Writing to a string does not fail.
            let _ = writeln!(
                svg,
                "<g><title>{}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
                 fill=\"hsl({hue} 55% 78%)\" stroke=\"white\"/>",
                title(tile.node)
            );
            let room = (width / LETTER) as usize;
            if room > 3 && height > LINE {
                let name: String = graph.path(tile.node).name().chars().take(room).collect();
                let (x, y) = (x + 3.0, y + LINE - 3.0);
                let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
            }
            svg.push_str("</g>\n");
        }
        svg + "</svg>\n"
    }
}

/// Places and sizes of tiles for `weights`, the largest first, that fill the tile at `at` of size `size`.
fn squarified(weights: &[f64], mut at: [f64; 2], mut size: [f64; 2]) -> Vec<[[f64; 2]; 2]> {
    let whole: f64 = weights.iter().sum();
    let scale = size[0] * size[1] / whole;
    let mut tiles = Vec::with_capacity(weights.len());
    let mut rest = weights;
    while let Some(largest) = rest.first() {
        // A row along the shorter side, of as many as make its tiles more like squares.
        let along = usize::from(size[1] < size[0]);
        let side = size[along];
        let worst = |sum: f64, least: f64| {
            let thick = sum * scale / side;
            let lengths = [largest, &least].map(|weight| weight * scale / thick);
            (lengths[0] / thick).max(thick / lengths[1])
        };
        let (mut count, mut sum) = (1, *largest);
        while let Some(next) = rest.get(count)
            && worst(sum + next, *next) <= worst(sum, rest[count - 1])
        {
            sum += next;
            count += 1;
        }
        let (row, others) = rest.split_at(count);
        rest = others;
        let thick = sum * scale / side;
        let mut start = at;
        for weight in row {
            let length = weight * scale / thick;
            let mut tile = [thick; 2];
            tile[along] = length;
            tiles.push([start, tile]);
            start[along] += length;
        }
        at[1 - along] += thick;
        size[1 - along] -= thick;
    }
    tiles
}

/// Pixels below which a tile is left out.
const MIN_AREA: f64 = 4.0;
/// The width of a letter and the height of a line, in pixels.
const LETTER: f64 = 6.2;
const LINE: f64 = 14.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::closure_graph::tests::closure_of;

    #[test]
    fn areas_are_sizes() {
        let closure = closure_of(&["a bca", "b d", "c df", "d e", "e", "f", "g"]);
        let graph = ClosureGraph::new(&closure);
        let roots = [0, 6];
        let sizes = ClosureSizes::of(&graph, &roots).unwrap();
        let map = Treemap::new(&sizes, [1000.0, 600.0]);
        assert_eq!(map.tiles.len(), 7);
        let whole: u64 = roots.iter().map(|node| sizes.added[*node as usize]).sum();
        let tile = |node: u32| map.tiles.iter().find(|tile| tile.node == node).unwrap();
        for node in 0..7 {
            let TreemapTile { at, size, .. } = *tile(node);
            let expected = sizes.added[node as usize] as f64 / whole as f64 * 600_000.0;
            assert!((size[0] * size[1] - expected).abs() < 1.0, "{node}");
            if let Some(keeper) = sizes.keeper[node as usize] {
                let outer = tile(keeper);
                for side in [0, 1] {
                    assert!(at[side] > outer.at[side] - 0.01);
                    let ends = [at[side] + size[side], outer.at[side] + outer.size[side]];
                    assert!(ends[0] < ends[1] + 0.01);
                }
            }
        }
        let svg = map.to_svg(&graph, |node| format!("{node} bytes"));
        assert_eq!(svg.matches("<rect").count(), 7);
        assert!(svg.contains("<title>6 bytes</title>"), "{svg}");
    }

    #[test]
    fn squares_rather_than_strips() {
        let tiles = squarified(&[6.0, 6.0, 4.0, 3.0, 2.0, 2.0, 1.0], [0.0; 2], [6.0, 4.0]);
        // The example of the paper.
        let sizes: Vec<_> = tiles[..2].iter().map(|[_, size]| size).collect();
        assert_eq!(sizes, [&[3.0, 2.0], &[3.0, 2.0]]);
        for [_, [width, height]] in tiles {
            assert!(width / height < 4.0 && height / width < 4.0);
        }
        assert!(squarified(&[], [0.0; 2], [6.0, 4.0]).is_empty());
    }
}
