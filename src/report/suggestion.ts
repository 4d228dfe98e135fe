/** What a name that nobody knows may have been meant to be. */

import type { distance } from 'fastest-levenshtein'

const MAX_SUGGESTIONS = 3
/** Shorter ones are part of too many. */
const MIN_PART = 3
/** Longer ones are no slip of a finger, and cost time. */
const MAX_LENGTH = 200

/** The nearest of the known names, best first: at most 3, none when nothing resembles it. Case does not count. */
export function findNear(name: string, known: Iterable<string>): string[] {
  if (name.length > MAX_LENGTH) return []
  const wanted = name.toLowerCase()
  const near = [...new Set(known)]
    .map((candidate) => ({ candidate, edits: countEdits(wanted, candidate.toLowerCase()) }))
    .filter(({ candidate, edits }) => {
      const longer = Math.max(wanted.length, candidate.length)
      return edits <= 1 ? longer > 1 : edits <= Math.max(3, longer / 3) && edits * 2 <= longer
    })
    .sort((a, b) => a.edits - b.edits)
  return near
    .filter(({ edits }) => edits === near[0]?.edits)
    .slice(0, MAX_SUGGESTIONS)
    .map(({ candidate }) => candidate)
}

let measure: typeof distance | undefined

/** Loaded for the first mistake: most command lines have none. */
function countDistance(one: string, other: string): number {
  const { createRequire } = process.getBuiltinModule('node:module')
  measure ??= (createRequire(import.meta.url)('fastest-levenshtein') as { distance: typeof distance }).distance
  return measure(one, other)
}

/** What was left out at the beginning or the end counts as one. */
function countEdits(wanted: string, candidate: string): number {
  const isPart = wanted.length >= MIN_PART && candidate !== wanted && candidate.includes(wanted)
  return isPart ? 1 : countDistance(wanted, candidate)
}

/** `; did you mean X?` or `; did you mean X, Y or Z?`, else nothing: it ends a message. */
export function didYouMean(name: string, known: Iterable<string>): string {
  const near = findNear(name, known)
  const last = near.pop()
  if (last === undefined) return ''
  return `; did you mean ${near.length === 0 ? last : `${near.join(', ')} or ${last}`}?`
}
