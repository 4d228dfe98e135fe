/**
 * The uuids of a batch: random, and for the same seed and line the same. A line that is put a second time, because it
 * is not known whether it was taken the first time, is the same job then.
 *
 * They are the key stream of AES in counter mode: who does not have the seed cannot tell the next from all before, which
 * counts, because a uuid is all that a reader of its result needs.
 */

import { createCipheriv } from 'node:crypto'

export const SEED_BYTES = 16
const UUID_BYTES = 16
/** Made at once: a cipher costs as much as some hundred of them. */
const BLOCK = 1024
const ZEROS = Buffer.alloc(BLOCK * UUID_BYTES)

/** @returns the uuid of a line: 32 lower-case hex digits, of version 4 */
export function makeUuidSeries(seed: Uint8Array): (line: number) => string {
  let first = Number.NaN
  let digits = ''
  return (line) => {
    const index = line % BLOCK
    if (line - index !== first) {
      first = line - index
      digits = makeBlock(seed, first)
    }
    return digits.slice(index * 2 * UUID_BYTES, (index + 1) * 2 * UUID_BYTES)
  }
}

function makeBlock(seed: Uint8Array, first: number): string {
  const counter = Buffer.alloc(UUID_BYTES)
  counter.writeBigUInt64BE(BigInt(first), UUID_BYTES - 8)
  const bytes = createCipheriv('aes-128-ctr', seed, counter).update(ZEROS)
  for (let at = 0; at < bytes.length; at += UUID_BYTES) {
    bytes[at + 6] = ((bytes[at + 6] ?? 0) & 0x0f) | 0x40
    bytes[at + 8] = ((bytes[at + 8] ?? 0) & 0x3f) | 0x80
  }
  return bytes.toString('hex')
}
