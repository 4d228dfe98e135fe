/** Sizes as people write them: a number of bytes, or a number with a binary unit. */

const UNITS = [
  ['TiB', 2 ** 40],
  ['GiB', 2 ** 30],
  ['MiB', 2 ** 20],
  ['KiB', 2 ** 10],
] as const

/**
 * Bytes from `1048576`, `512KiB`, `64 MiB`, `1GiB` or `2TiB`; a number counts as bytes.
 * @throws RangeError
 */
export function parseBytes(text: string | number): number {
  const match = /^(\d{1,15})\s*(|KiB|MiB|GiB|TiB)$/i.exec(String(text))
  const factor = UNITS.find(([unit]) => unit.toLowerCase() === match?.[2]?.toLowerCase())?.[1] ?? 1
  const bytes = Number(match?.[1]) * factor
  if (Number.isSafeInteger(bytes)) return bytes
  throw new RangeError(
    `a size is a number of bytes such as 1048576, 512KiB, 64MiB or 1GiB; this is ${JSON.stringify(text)}`,
  )
}

/** For people: in the largest unit that fits, rounded to a whole number from ten on and to a tenth below. */
export function formatBytes(bytes: number): string {
  const [unit, factor] = UNITS.find(([, size]) => bytes >= size) ?? ['bytes', 1]
  const value = bytes / factor
  return `${value >= 10 ? Math.round(value) : Math.round(value * 10) / 10} ${unit}`
}
