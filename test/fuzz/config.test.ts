import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, expect, test } from 'vitest'
import { type Config, ConfigError, type ConfigSources, DEFAULTS, loadConfig } from '../../src/config.ts'
import { effort, expectCleanPrototypes, FUZZ_TIMEOUT_MS, repetitions } from './effort.ts'
import { yamlText, yamlValue } from './yaml.ts'

const KEYS = Object.keys(DEFAULTS)
const MAX_MS = 10_000
const dir = mkdtempSync(join(tmpdir(), 'qworker-fuzz-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

let files = 0
function rc(text: string | Uint8Array): string {
  const file = join(dir, `rc${files++ % 10}`)
  writeFileSync(file, text)
  return file
}

/** What all sources come to: a frozen Config that reads back as itself, or a ConfigError whose lines can be shown. */
async function checkSources(sources: ConfigSources): Promise<'taken' | 'refused'> {
  const began = performance.now()
  try {
    await checkConfig(await loadConfig({ env: {}, ...sources }))
    return 'taken'
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    expect(error.problems.length).toBeGreaterThan(0)
    for (const problem of error.problems) {
      expect(problem.replaceAll(sources.file || '\n', '')).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
      expect(problem.length).toBeLessThan(12_000)
    }
    return 'refused'
  } finally {
    expect(performance.now() - began).toBeLessThan(MAX_MS)
  }
}

async function checkConfig(config: Config): Promise<void> {
  expect(Object.isFrozen(config) && Object.values(config).every(Object.isFrozen)).toBe(true)
  expect(Object.keys(config)).toEqual(KEYS)
  // What was taken is taken again, and comes to the same.
  const again = await loadConfig({ file: rc(JSON.stringify(config)), env: {} })
  expect(again).toEqual(config)
}

const name = fc.oneof(
  { arbitrary: fc.constantFrom(...KEYS), weight: 12 },
  { arbitrary: fc.constantFrom('__proto__', 'constructor', 'prototype', 'toString', 'TUBS', 'tubes', ''), weight: 1 },
  { arbitrary: fc.string({ unit: 'binary', maxLength: 12 }), weight: 1 },
)
const likely = fc.oneof(
  fc.constantFrom<[string, unknown]>(
    ['TUBES', 'a,b'],
    ['TUBES', ['a', 'b', 'a']],
    ['CONCURRENCY', '4'],
    ['TTR', '2h'],
    ['MAX_OUTPUT', '1 KiB'],
    ['HTTP_PORT', false],
    ['RESULT_BASEURL', 'https://x/y//'],
    ['RESULT_BASEDIR', 'a/../b'],
    ['ALGORITHM_DIRS', ['builtin', 'x']],
    ['S3_PREFIX', 'a/b'],
    ['S3_ENDPOINT', 'http://[::1]:9000/'],
    ['S3_FORCE_PATH_STYLE', 'true'],
    ['SMTP_PASSWORD', 'é\\"'],
  ),
  fc.tuple(name, yamlValue),
)
const document = fc
  .array(likely, { maxLength: 5 })
  .map((entries) => `{${entries.map(([k, v]) => `${JSON.stringify(k)}: ${JSON.stringify(v) ?? 'null'}`).join(', ')}}`)

test(
  'any rc file is a whole configuration, or refused with lines that can be shown',
  async () => {
    const seen = { taken: 0, refused: 0 }
    const text = fc.oneof(
      { arbitrary: document, weight: 3 },
      { arbitrary: yamlText(KEYS), weight: 3 },
      { arbitrary: fc.uint8Array({ maxLength: 300 }), weight: 1 },
    )
    await fc.assert(
      fc.asyncProperty(text, async (bytes) => {
        seen[await checkSources({ file: rc(bytes) })]++
      }),
      effort(900),
    )
    expectCleanPrototypes()
    expect(Math.min(seen.taken, seen.refused)).toBeGreaterThan(100)
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'any environment and command line are a whole configuration, or refused',
  async () => {
    const text = fc.oneof(fc.constantFrom('', '1', 'auto', 'a,b', '90s', 'true', 'off'), fc.string({ unit: 'binary' }))
    const sources = fc.record({
      env: fc.dictionary(name, text, { maxKeys: 4 }),
      flags: fc.dictionary(name, yamlValue, { maxKeys: 3 }),
      keys: fc.option(fc.subarray(KEYS) as fc.Arbitrary<never>, { nil: undefined }),
    })
    await fc.assert(
      fc.asyncProperty(sources, async (given) => void (await checkSources(given))),
      effort(900),
    )
    expectCleanPrototypes()
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'any name of an rc file is refused or read',
  async () => {
    const path = fc.oneof(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('/', '.', '', '\0', '/dev/null', '/proc/self/mem'),
    )
    await fc.assert(
      fc.asyncProperty(path, async (file) => void (await checkSources({ file }))),
      effort(200),
    )
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'an rc file may be deep, long or full of itself: it is read in time',
  async () => {
    await fc.assert(
      fc.asyncProperty(repetitions(300_000), async (text) => {
        await checkSources({ file: rc(text) })
      }),
      effort(20),
    )
    const many = Array.from({ length: 60_000 }, (_, i) => `a${i}: 1`).join('\n')
    expect(await checkSources({ file: rc(many) })).toBe('refused')
  },
  FUZZ_TIMEOUT_MS,
)
