/**
 * The sailor's dice: a pure function of (seed, attempt), so that a job which is retried with one seed
 * makes the same voyage again, throw by throw.
 *
 * Source: SplitMix (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) narrowed to 32 bits:
 * a counter that walks in steps of 2^32 / golden ratio, finished by the mixer of MurmurHash3 (Austin Appleby,
 * public domain). Changing anything here changes every seeded voyage, and SAMPLE_SEED with it.
 */
const GOLDEN_STEP = 0x9e3779b9
const WORD = 2 ** 32

/** The seed of the ancestor's sample run. Dice 3, 2, 0: infinite loop (killed), faulty (exit 10), normal (exit 0). */
export const SAMPLE_SEED = 40

/** A whole number from 0 to sides - 1. `seed` is a safe integer from 0 on, `attempt` counts from 1. */
export function rollDice(seed: number, attempt: number, sides: number): number {
  // A seed has up to 53 bits: the low 32 and the rest enter one after the other, so that both count.
  const start = mix(mix(seed) + Math.floor(seed / WORD))
  return Math.floor((mix(start + Math.imul(attempt, GOLDEN_STEP)) / WORD) * sides)
}

function mix(word: number): number {
  let bits = word >>> 0
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b)
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35)
  return (bits ^ (bits >>> 16)) >>> 0
}
