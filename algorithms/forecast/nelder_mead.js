/** Nelder and Mead's simplex search. Deterministic: the same start gives the same end. */

/**
 * @param {(x: Float64Array) => number} cost to be minimised; Infinity marks a point outside
 * @param {readonly number[]} start
 * @param {readonly number[]} steps first step along each coordinate
 * @param {{ evaluations: number, tolerance?: number }} limits
 * @returns {{ x: Float64Array, cost: number, evaluations: number }}
 */
export function minimize(cost, start, steps, { evaluations, tolerance = 1e-9 }) {
  const n = start.length
  const simplex = [makeVertex(cost, Float64Array.from(start))]
  for (let i = 0; i < n; i++) {
    const x = Float64Array.from(start)
    x[i] += steps[i]
    simplex.push(makeVertex(cost, x))
  }
  let used = n + 1
  for (;;) {
    simplex.sort((a, b) => a.cost - b.cost)
    const best = simplex[0]
    const worst = simplex[n]
    const spread = worst.cost - best.cost
    if (used >= evaluations || spread <= tolerance * (Math.abs(best.cost) + tolerance)) {
      return { ...best, evaluations: used }
    }
    used += moveWorst(cost, simplex)
  }
}

function makeVertex(cost, x) {
  const value = cost(x)
  return { x, cost: Number.isNaN(value) ? Number.POSITIVE_INFINITY : value }
}

/** Reflects, expands or contracts the last vertex, or shrinks all towards the first. Returns the evaluations used. */
function moveWorst(cost, simplex) {
  const n = simplex.length - 1
  const worst = simplex[n]
  const centre = new Float64Array(n)
  for (let v = 0; v < n; v++) for (let i = 0; i < n; i++) centre[i] += simplex[v].x[i] / n
  const at = (factor) =>
    makeVertex(
      cost,
      centre.map((c, i) => c + factor * (worst.x[i] - c)),
    )

  const reflected = at(-1)
  if (reflected.cost < simplex[0].cost) {
    const expanded = at(-2)
    simplex[n] = expanded.cost < reflected.cost ? expanded : reflected
    return 2
  }
  if (reflected.cost < simplex[n - 1].cost) {
    simplex[n] = reflected
    return 1
  }
  const contracted = reflected.cost < worst.cost ? at(-0.5) : at(0.5)
  if (contracted.cost < Math.min(reflected.cost, worst.cost)) {
    simplex[n] = contracted
    return 2
  }
  const best = simplex[0]
  for (let v = 1; v <= n; v++) {
    simplex[v] = makeVertex(
      cost,
      best.x.map((b, i) => b + 0.5 * (simplex[v].x[i] - b)),
    )
  }
  return 2 + n
}
