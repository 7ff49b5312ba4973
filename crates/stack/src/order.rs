//! Start order: dependencies first, otherwise the order of the file.

/// A cycle: indices of the nodes on it, the first one again at the end.
#[derive(Debug, PartialEq)]
pub(crate) struct Cycle(pub(crate) Vec<usize>);

/// Order `0..dependencies.len()` so that a node comes after all that it depends on. A node comes as
/// early as the order of the indices allows.
pub(crate) fn order(dependencies: &[Vec<usize>]) -> Result<Vec<usize>, Cycle> {
    let count = dependencies.len();
    let mut done = vec![false; count];
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        let is_ready = |node: &usize| !done[*node] && dependencies[*node].iter().all(|needed| done[*needed]);
        match (0..count).find(is_ready) {
            Some(node) => {
                done[node] = true;
                order.push(node);
            }
            None => return Err(cycle(dependencies, &done)),
        }
    }
    Ok(order)
}

/// Every node left has an unmet dependency, so following those must meet a node again.
fn cycle(dependencies: &[Vec<usize>], done: &[bool]) -> Cycle {
    let mut path: Vec<usize> = Vec::new();
    let mut next = done.iter().position(|done| !done);
    while let Some(node) = next {
        if let Some(start) = path.iter().position(|seen| *seen == node) {
            path.drain(..start);
            path.push(node);
            break;
        }
        path.push(node);
        next = dependencies[node].iter().copied().find(|needed| !done[*needed]);
    }
    Cycle(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_and_complete() {
        assert_eq!(order(&[vec![], vec![], vec![]]), Ok(vec![0, 1, 2]));
        assert_eq!(order(&[vec![2], vec![], vec![1]]), Ok(vec![1, 2, 0]));
        assert_eq!(order(&[]), Ok(vec![]));
    }

    #[test]
    fn cycles() {
        assert_eq!(order(&[vec![0]]), Err(Cycle(vec![0, 0])));
        // 0 only leads into the cycle.
        assert_eq!(order(&[vec![1], vec![2], vec![3], vec![1]]), Err(Cycle(vec![1, 2, 3, 1])));
    }
}
