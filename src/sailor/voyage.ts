import { rollDice } from './dice.ts'
import {
  getMischief,
  isMischiefName,
  listMischiefs,
  MAX_MEGABYTES,
  type MischiefName,
  type Sea,
  writeAll,
} from './mischief.ts'

/** What flags or the payload of a job ask for; a key that is not there is left to the other, or to its default. */
export type Orders = {
  seed?: number
  outcome?: MischiefName
  wild?: boolean
  sleep?: number
  megabytes?: number
}

type OrdersRead =
  | { kind: 'orders'; orders: Orders }
  | { kind: 'refused'; key: string; expected: string; value: unknown }

/** One row for each key of a payload that we know. All other keys belong to somebody else and are ignored. */
const PAYLOAD_KEYS: Record<keyof Orders, { expected: string; holds: (value: unknown) => boolean }> = {
  seed: { expected: 'a whole number from 0 on', holds: isSeed },
  outcome: { expected: 'one of the names that drunken-sailor --list prints', holds: isMischiefName },
  wild: { expected: 'true or false', holds: (value) => typeof value === 'boolean' },
  sleep: { expected: 'a number of seconds from 0 on', holds: isSeconds },
  megabytes: { expected: `a whole number from 1 to ${MAX_MEGABYTES}`, holds: isMegabytes },
}

/** `text` is the payload of a job, as it lies in input.json. */
export function readOrders(text: string): OrdersRead {
  let payload: unknown
  try {
    payload = JSON.parse(text)
  } catch {
    return { kind: 'refused', key: 'payload', expected: 'a JSON object', value: text.slice(0, 60) }
  }
  if (typeof payload !== 'object' || payload === null || Array.isArray(payload)) {
    return { kind: 'refused', key: 'payload', expected: 'a JSON object', value: payload }
  }
  const orders: Record<string, unknown> = {}
  for (const [key, rule] of Object.entries(PAYLOAD_KEYS)) {
    if (!Object.hasOwn(payload, key)) continue
    const value = (payload as Record<string, unknown>)[key]
    if (!rule.holds(value)) return { kind: 'refused', key, expected: rule.expected, value }
    orders[key] = value
  }
  return { kind: 'orders', orders: orders as Orders }
}

export function isSeed(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

export function isSeconds(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0
}

export function isMegabytes(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 1 && (value as number) <= MAX_MEGABYTES
}

/** Which mischief a voyage meets at this attempt (from 1 on). */
export function chooseMischief(
  orders: { outcome?: MischiefName | undefined; wild?: boolean | undefined; seed: number },
  attempt: number,
): MischiefName {
  if (orders.outcome !== undefined) return orders.outcome
  const names = listMischiefs(orders.wild ?? false)
  return names[rollDice(orders.seed, attempt, names.length)]!
}

/** Prints the ancestor's lines, does the mischief, and resolves to the exit code, if it ends at all. */
export async function sail(name: MischiefName, sea: Sea, verbose: boolean): Promise<number> {
  const mischief = getMischief(name)
  await writeAll(process.stdout, `Drunken sailor PID: ${process.pid}\n`)
  mischief.prepare?.()
  if (verbose) await writeAll(process.stdout, `${mischief.line}\n`)
  return mischief.run(sea)
}
