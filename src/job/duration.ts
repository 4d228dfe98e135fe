/** Durations as people write them: whole seconds, or a number with a unit. */

const UNITS = [
  ['d', 86_400],
  ['h', 3600],
  ['m', 60],
  ['s', 1],
] as const

/** The largest that beanstalkd takes. */
const MAX_SECONDS = 4_294_967_295

/**
 * Seconds from `90`, `90s`, `5m`, `2h` or `1d`; a number counts as seconds.
 * @throws RangeError
 */
export function parseDuration(text: string | number): number {
  const match = /^\s*(\d{1,10})([smhd]?)\s*$/.exec(String(text))
  const factor = UNITS.find(([unit]) => unit === match?.[2])?.[1] ?? 1
  const seconds = Number(match?.[1]) * factor
  if (seconds <= MAX_SECONDS) return seconds
  const what = match
    ? `at most ${MAX_SECONDS} seconds`
    : 'whole seconds (90, 90s), minutes (5m), hours (2h) or days (1d)'
  throw new RangeError(`a duration is ${what}; this is ${JSON.stringify(text)}`)
}

/** Shortest form that `parseDuration` reads back: `90s`, `5m`, `2h`, `1d`. */
export function formatDuration(seconds: number): string {
  for (const [unit, factor] of UNITS) {
    if (seconds >= factor && seconds % factor === 0) return `${seconds / factor}${unit}`
  }
  return `${seconds}s`
}
