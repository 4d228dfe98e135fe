/** Rounds and what they come to. */

import { settleDisk } from './children.js'

/**
 * Each round has every contender once, in an order that turns from round to round. With --quick a row whose time is over
 * ends with the round at hand.
 * @returns what each contender's `run` returned, by contender, in the order of the rounds
 */
export async function interleave(bench, contenders, rounds = bench.rounds) {
  const samples = contenders.map(() => [])
  for (let round = 0; round < rounds; round++) {
    if (round > 0 && performance.now() > bench.deadline) {
      bench.leaveOut(`${bench.row}: rounds after ${round} of ${rounds}, which would have taken too long`)
      break
    }
    for (let i = 0; i < contenders.length; i++) {
      // A step that spreads the rounds over all positions.
      const at = (i + Math.floor((round * contenders.length) / rounds)) % contenders.length
      settleDisk()
      samples[at].push(await contenders[at].run(round))
    }
  }
  return samples
}

export function quantile(values, q) {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const low = sorted[Math.floor(at)]
  return low + (sorted[Math.ceil(at)] - low) * (at - Math.floor(at))
}

export const median = (values) => quantile(values, 0.5)

/**
 * One line of the table. `beside` is the entry that it is compared with: `ratio` is this median by that one.
 * Values that could not be measured are left out; without any, there is no entry.
 */
export function makeEntry(name, unit, values, { slots, beside } = {}) {
  const known = values.filter((value) => Number.isFinite(value))
  if (known.length === 0) return undefined
  const entry = { name, slots, unit, median: median(known), min: Math.min(...known), max: Math.max(...known) }
  if (beside === undefined) return { ...entry, values: known }
  return { ...entry, ratio: entry.median / beside.median, ratio_to: beside.name, values: known }
}
