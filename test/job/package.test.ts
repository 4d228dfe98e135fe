import { expect, test } from 'vitest'
import { encodePackage, MAX_DEPTH, PackageError, type PackageErrorCode, parsePackage } from '../../src/job/package.ts'

const UUID = 'bc3a925099b9012e0f06549a20077664'

function errorOf(body: string | Uint8Array): PackageError {
  try {
    parsePackage(typeof body === 'string' ? Buffer.from(body) : body)
  } catch (error) {
    if (error instanceof PackageError) return error
    throw error
  }
  throw new Error('it was taken')
}

test('the package of the ancestor is read as it is', () => {
  const body = `[{"uuid":"${UUID}","type":"drunken_sailor"},{"23":"42","foo":"bar"}]`
  const { header, payloadJson } = parsePackage(Buffer.from(body))
  expect(header).toEqual({ uuid: UUID, type: 'drunken_sailor' })
  expect(JSON.parse(payloadJson)).toEqual({ 23: '42', foo: 'bar' })
  expect(encodePackage({ header, payloadJson }).toString()).toBe(body)
})

test('a payload reaches the algorithm with every digit and blank that was sent', () => {
  const payload = '{ "id": 12345678901234567890.10, "text": "a,]}\\"[" }'
  expect(
    parsePackage(Buffer.from(` [ {"uuid":"${UUID}","type":"a", "tags":{"k":"],["}} , ${payload} ] \n`)).payloadJson,
  ).toBe(payload)
})

test.each([['{}'], ['[1,2]'], ['null'], ['"text"'], ['0']])('payload %s is taken', (payload) => {
  expect(parsePackage(Buffer.from(`[{"uuid":"${UUID}","type":"a"},${payload}]`)).payloadJson).toBe(payload)
})

test('unknown header keys are kept', () => {
  const { header } = parsePackage(Buffer.from(`[{"uuid":"${UUID}","type":"a","reply_to":"b"},{}]`))
  expect(header.reply_to).toBe('b')
})

const head = (header: object) => JSON.stringify([header, {}])

test.each<[string, string | Uint8Array, PackageErrorCode, RegExp]>([
  ['bytes that are not UTF-8', Buffer.from([0x5b, 0xff, 0xfe]), 'not_utf8', /3 bytes/],
  ['nothing', '', 'not_json', /not JSON/],
  ['half a document', '[{"uuid":"bc', 'not_json', /not JSON/],
  ['an object', '{"uuid":1}', 'bad_shape', /array of two.*an object/],
  ['three elements', '[{},{},{}]', 'bad_shape', /array of 3 elements/],
  ['a header that is no object', '[[],{}]', 'bad_shape', /header/],
  ['no uuid', head({ type: 'a' }), 'bad_uuid', /uuid must be 32.*missing/],
  ['a uuid that climbs', head({ uuid: '../../../../../../../../etc/x', type: 'a' }), 'bad_uuid', /\.\.\//],
  ['an upper-case uuid', head({ uuid: UUID.toUpperCase(), type: 'a' }), 'bad_uuid', new RegExp(`write it as ${UUID}`)],
  [
    'a uuid with dashes',
    head({ uuid: 'bc3a9250-99b9-012e-0f06-549a20077664', type: 'a' }),
    'bad_uuid',
    new RegExp(`write it as ${UUID}`),
  ],
  ['a uuid with a line break', head({ uuid: `${UUID}\n`, type: 'a' }), 'bad_uuid', /uuid must/],
  ['a uuid that is a number', head({ uuid: 5, type: 'a' }), 'bad_uuid', /it is 5/],
  ['no type', head({ uuid: UUID }), 'bad_type', /type must.*missing/],
  ['a type that climbs', head({ uuid: UUID, type: '../sh' }), 'bad_type', /type must/],
  ['a type with a blank', head({ uuid: UUID, type: 'a b' }), 'bad_type', /type must/],
  ['a type of 65 letters', head({ uuid: UUID, type: 'a'.repeat(65) }), 'bad_type', /type must/],
  ['attempts of 0', head({ uuid: UUID, type: 'a', max_attempts: 0 }), 'bad_max_attempts', /from 1 to 1000; it is 0/],
  ['tags that are numbers', head({ uuid: UUID, type: 'a', tags: { k: 1 } }), 'bad_tags', /tag "k"/],
])('%s are refused with a message that says what came', (_, body, code, message) => {
  const error = errorOf(body)
  expect(error.code).toBe(code)
  expect(error.message).toMatch(message)
  expect(error.message).not.toMatch(/[\u0000-\u001f]/)
})

test('60 KB of nested arrays are refused without a recursion', () => {
  const deep = '['.repeat(30_000) + ']'.repeat(30_000)
  expect(errorOf(`[{"uuid":"${UUID}","type":"a"},${deep}]`).code).toBe('too_deep')
  const allowed = '['.repeat(MAX_DEPTH - 1) + ']'.repeat(MAX_DEPTH - 1)
  expect(parsePackage(Buffer.from(`[{"uuid":"${UUID}","type":"a"},${allowed}]`)).payloadJson).toBe(allowed)
})

test('a refused package tells its uuid where it could be read', () => {
  expect(errorOf(head({ uuid: UUID, type: 'NO' })).uuid).toBe(UUID)
  expect(errorOf(head({ uuid: 'x', type: 'no' })).uuid).toBeUndefined()
})
