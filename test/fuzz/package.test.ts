import fc from 'fast-check'
import { expect, test } from 'vitest'
import { encodePackage, isType, isUuid, MAX_DEPTH, PackageError, parsePackage } from '../../src/job/package.ts'
import { effort, expectCleanPrototypes, FUZZ_TIMEOUT_MS } from './effort.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'
const MAX_MESSAGE = 400
const MAX_MS = 2000

/** What every input comes to: a package that keeps its promises, or a PackageError whose message can be shown. */
function checkBytes(bytes: Uint8Array): 'taken' | 'refused' {
  const began = performance.now()
  try {
    checkTaken(bytes)
    return 'taken'
  } catch (error) {
    if (!(error instanceof PackageError)) throw error
    expect(error.message.length).toBeLessThan(MAX_MESSAGE)
    expect(error.message).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
    expect(error.uuid === undefined || isUuid(error.uuid)).toBe(true)
    expect(error.type === undefined || isType(error.type)).toBe(true)
    return 'refused'
  } finally {
    expect(performance.now() - began).toBeLessThan(MAX_MS)
  }
}

function checkTaken(bytes: Uint8Array): void {
  const { header, payloadJson } = parsePackage(bytes)
  expect(Object.getPrototypeOf(header)).toBe(Object.prototype)
  expect(Object.hasOwn(header, 'uuid') && isUuid(header.uuid)).toBe(true)
  expect(Object.hasOwn(header, 'type') && isType(header.type)).toBe(true)
  const { max_attempts, tags } = header
  if (max_attempts !== undefined) expect(Number.isInteger(max_attempts) && max_attempts > 0).toBe(true)
  expect(Object.values(tags ?? {}).every((tag) => typeof tag === 'string')).toBe(true)
  // The payload is the text that came, not what a JavaScript number makes of it.
  const text = new TextDecoder().decode(bytes)
  expect(text).toContain(payloadJson)
  const [, payload] = JSON.parse(text)
  expect(JSON.stringify(JSON.parse(payloadJson))).toBe(JSON.stringify(payload))
  const again = parsePackage(encodePackage({ header, payloadJson }))
  expect(again.payloadJson).toBe(payloadJson)
  expect(JSON.stringify(again.header)).toBe(JSON.stringify(header))
}

const key = fc.oneof(
  fc.constantFrom('uuid', 'type', 'max_attempts', 'tags', '__proto__', 'constructor', 'prototype', 'toString', ''),
  fc.string({ unit: 'binary', maxLength: 8 }),
)
const numberText = fc.oneof(
  fc.constantFrom('0', '-0', '1e400', '-1e400', '1e-400', '0.1', '12345678901234567890.10', '1E+2', '01', '1.', '+1'),
  fc.stringMatching(/^-?[1-9][0-9]{0,300}$/),
)
const text = fc.oneof(
  fc.constantFrom(UUID, UUID.toUpperCase(), `${UUID}0`, 'sleep', 'drunken_sailor', '../x', 'A', '.', 'a'.repeat(65)),
  fc.string({ unit: 'binary', maxLength: 20 }),
)

/** JSON as text, for what no JavaScript value can say: keys that stand twice, numbers beyond all measure, blanks. */
const { value: jsonText, object: objectText } = fc.letrec<{ value: string; object: string }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 5, depthSize: 'small', withCrossShrink: true },
    fc.constantFrom('null', 'true', 'false', 'nul', 'undefined', 'NaN', '""', '"\\ud800"', '"a,]}\\"["'),
    numberText,
    text.map((value) => JSON.stringify(value)),
    fc
      .tuple(fc.array(tie('value'), { maxLength: 4 }), fc.constantFrom(',', ' , ', '\n,\t'))
      .map(([values, comma]) => `[${values.join(comma)}]`),
    tie('object'),
  ),
  object: fc
    .array(fc.tuple(key, tie('value')), { maxLength: 6 })
    .map((entries) => `{${entries.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(',')}}`),
}))

const header = fc.oneof(
  objectText,
  objectText.map((object) => `{"uuid":"${UUID}","type":"sleep"${object === '{}' ? '' : ','}${object.slice(1)}`),
)
const soundHeader = fc
  .array(fc.tuple(fc.string({ unit: 'binary', minLength: 13 }), fc.json()), { maxLength: 3 })
  .map((more) =>
    [`{"uuid":"${UUID}","type":"sleep"`, ...more.map(([name, value]) => `${JSON.stringify(name)}:${value}`)]
      .join(',')
      .concat('}'),
  )
const packageText = fc.oneof(
  { arbitrary: fc.tuple(header, jsonText).map(([first, second]) => `[${first},${second}]`), weight: 2 },
  { arbitrary: fc.tuple(header, fc.json()).map(([first, second]) => `[${first},${second}]`), weight: 2 },
  { arbitrary: fc.tuple(soundHeader, fc.json()).map(([first, second]) => ` [${first} ,\t${second}\n]`), weight: 1 },
  { arbitrary: fc.tuple(soundHeader, jsonText).map(([first, second]) => `[${first},${second}]`), weight: 1 },
  { arbitrary: fc.array(jsonText, { maxLength: 4 }).map((values) => `[${values.join(',')}]`), weight: 1 },
)

test(
  'any bytes are a package or refused',
  () => {
    const bytes = fc.oneof(fc.uint8Array({ maxLength: 300 }), fc.string({ unit: 'binary' }).map(Buffer.from))
    fc.assert(
      fc.property(bytes, (input) => void checkBytes(input)),
      effort(3000),
    )
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'anything like a package is a package or refused: keys that stand twice, keys of prototypes, vast numbers',
  () => {
    const seen = { taken: 0, refused: 0 }
    fc.assert(
      fc.property(packageText, (input) => {
        seen[checkBytes(Buffer.from(input))]++
      }),
      effort(3000),
    )
    expectCleanPrototypes()
    // A search that only ever sees one side proves nothing.
    expect(Math.min(seen.taken, seen.refused)).toBeGreaterThan(100)
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'a package with a few bytes changed, lost, doubled or cut off is a package or refused',
  () => {
    const whole = Buffer.from(
      `[{"uuid":"${UUID}","type":"sleep","max_attempts":3,"tags":{"k":"é]"}},{"a":[1.50,{"b":"\\u0000\\\\\\""}]}]`,
    )
    const change = fc.tuple(
      fc.constantFrom('set', 'drop', 'double', 'cut', 'insert'),
      fc.nat(whole.length - 1),
      fc.oneof(fc.constantFrom(...Buffer.from('[]{},:"\\ 019ea-'), 0, 0xff, 0xc3, 0xef), fc.nat(255)),
    )
    const changed = fc.array(change, { minLength: 1, maxLength: 4 }).map((changes) => {
      let bytes = [...whole]
      for (const [how, at, byte] of changes) {
        if (how === 'set') bytes[at] = byte
        else if (how === 'cut') bytes = bytes.slice(0, at)
        else if (how === 'drop') bytes.splice(at, 1)
        else bytes.splice(at, 0, how === 'double' ? (bytes[at] ?? byte) : byte)
      }
      return Uint8Array.from(bytes)
    })
    fc.assert(
      fc.property(changed, (input) => void checkBytes(input)),
      effort(3000),
    )
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'depth and length cost no more than their bytes',
  () => {
    const shape = fc.tuple(
      fc.constantFrom('[', '{', '[[', '{"a":', '[{"a":', '"', '"\\', '[1,', '9', ' '),
      fc.nat(60_000),
    )
    const deep = fc
      .tuple(shape, fc.constantFrom('', ']', '}', ']]', '"', '}]'), fc.boolean())
      .map(([[open, times], close, whole]) => {
        const middle = `${open.repeat(times)}${close.repeat(times)}`
        return whole ? `[{"uuid":"${UUID}","type":"a"},${middle}]` : middle
      })
    fc.assert(
      fc.property(deep, (input) => void checkBytes(Buffer.from(input))),
      effort(150),
    )
    const nested = (levels: number) => `[{"uuid":"${UUID}","type":"a"},${'['.repeat(levels)}${']'.repeat(levels)}]`
    expect(checkBytes(Buffer.from(nested(MAX_DEPTH - 1)))).toBe('taken')
    expect(checkBytes(Buffer.from(nested(MAX_DEPTH)))).toBe('refused')
  },
  FUZZ_TIMEOUT_MS,
)
