import { expect, test } from 'vitest'
import { encodeResult, encodeStatus, parseResultFiles, parseStatus } from '../../src/job/result.ts'

const fields = {
  uuid: 'bc3a925099b9012e0f06549a20077664',
  type: 'a',
  version: '1',
  timestamp: '2026-01-01T00:00:00.000Z',
  attempt: 1,
  worker: 'w',
  started: 's',
  finished: 'f',
  duration_seconds: 1,
  exit_code: 0,
  files: [{ name: 'plot.svg', bytes: 3, sha256: 'ab' }],
}

test('a result keeps every digit of what the algorithm printed', () => {
  const text = encodeResult({ ...fields, resultJson: ' {"n":12345678901234567890.10}\n' })
  expect(text).toContain('"result":{"n":12345678901234567890.10},"files":[')
  expect(JSON.parse(text)).toMatchObject({
    format: 1,
    uuid: fields.uuid,
    timestamp: fields.timestamp,
    files: fields.files,
  })
})

test.each([
  ['null', 'plain.txt'],
  ['{"x":1,"files":[{"name":"inner"}]}', 'a,"files":[{"name":"forged"}]}.txt'],
  ['",\\"files\\":[]"', ']}'],
  ['[[1,"files"],{"a":2,"files":[]}]', '\\,"files":['],
])('the files are found from the tail, whatever the result %j and the name %j hold', (resultJson, name) => {
  const files = [{ name, bytes: 1, sha256: 'ab' }]
  for (const list of [files, [], [...files, ...files]]) {
    const text = encodeResult({ ...fields, files: list, resultJson })
    expect(parseResultFiles(text)).toEqual(JSON.parse(text).files)
  }
})

test.each(['', '{}', '{"a":1,"files":[', '{"a":1,"files":[1]}', '{"a":1,"files":[{"name":"x"}],"b":2}'])(
  'the text %j is no result document',
  (text) => {
    expect(() => parseResultFiles(text)).toThrow(SyntaxError)
  },
)

test('a status document comes back as it went, and anything else is none', () => {
  const status = { format: 1, uuid: fields.uuid, type: 'a', state: 'failed' as const, timestamp: 't', attempts: [] }
  expect(parseStatus(encodeStatus(status))).toEqual(status)
  for (const text of [
    '',
    '{',
    'null',
    '[]',
    '{"format":2,"uuid":"x","attempts":[]}',
    '{"format":1,"uuid":"x","attempts":[null]}',
  ])
    expect(parseStatus(text)).toBeUndefined()
})
