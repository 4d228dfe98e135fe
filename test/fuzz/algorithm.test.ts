import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, expect, test } from 'vitest'
import { TYPE_PATTERN } from '../../src/job/package.ts'
import { type Algorithm, type Catalogue, commandFor, findAlgorithms } from '../../src/run/algorithm.ts'
import { effort, expectCleanPrototypes, FUZZ_TIMEOUT_MS } from './effort.ts'
import { yamlText, yamlValue } from './yaml.ts'

const PATH = process.env.PATH ?? ''
const MAX_MS = 10_000
const MAX_REASON = 4000

const top = mkdtempSync(join(tmpdir(), 'qworker-fuzz-'))
afterAll(() => rmSync(top, { recursive: true, force: true }))

let rounds = 0
async function find(manifests: readonly (string | Uint8Array)[]): Promise<Catalogue> {
  const dir = join(top, String(rounds++))
  for (const [i, manifest] of manifests.entries()) {
    mkdirSync(join(dir, `folder${i}`), { recursive: true })
    writeFileSync(join(dir, `folder${i}`, 'algorithm.yaml'), manifest)
  }
  const began = performance.now()
  const catalogue = await findAlgorithms({ dirs: [dir], path: PATH, shareable: ['SMTP_HOST'] })
  expect(performance.now() - began).toBeLessThan(MAX_MS)
  rmSync(dir, { recursive: true })
  return catalogue
}

/** Every folder is an algorithm, or broken with a reason that can be shown, or told of as one too many. */
function checkCatalogue({ algorithms, broken, problems }: Catalogue, folders: number): void {
  expect(algorithms.size + broken.size + problems.length).toBeGreaterThanOrEqual(Math.min(1, folders))
  expect(algorithms.size + broken.size).toBeLessThanOrEqual(folders)
  for (const [name, algorithm] of algorithms) {
    expect(broken.has(name)).toBe(false)
    expect(algorithm.name).toBe(name)
    checkAlgorithm(algorithm)
  }
  for (const reason of [...broken.values(), ...problems]) {
    expect(reason.length).toBeLessThan(MAX_REASON)
    expect(reason).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/)
  }
}

function checkAlgorithm(algorithm: Algorithm): void {
  const { name, command, outputs, output, env, settings, maxAttempts, permanentExits } = algorithm
  expect(name).toMatch(TYPE_PATTERN)
  expect(['auto', 'json', 'text']).toContain(output)
  const words = [
    command,
    outputs ?? [],
    settings,
    Object.values(env),
    [algorithm.version, algorithm.description],
  ].flat()
  expect(words.filter((word) => typeof word !== 'string')).toEqual([])
  // What goes to exec(2) holds no NUL, whatever is put in for the placeholders.
  const argv = commandFor(algorithm, { ttr: 60, uuid: 'bc3a925099b9012e0f06549a20077664', attempt: 1 })
  expect(argv).toHaveLength(command.length)
  expect([...argv, ...Object.values(env)].filter((word) => word.includes('\0'))).toEqual([])
  expect(argv[0]).not.toBe('')
  expect(Object.keys(env).filter((variable) => !/^(?!QWORKER_)[A-Za-z_]\w*$/.test(variable))).toEqual([])
  expect((outputs ?? []).filter((pattern) => pattern.includes('/') || pattern === '')).toEqual([])
  expect(settings.filter((key) => key !== 'SMTP_HOST')).toEqual([])
  if (maxAttempts !== undefined) expect(Number.isInteger(maxAttempts) && maxAttempts >= 1).toBe(true)
  for (const code of permanentExits) expect(Number.isInteger(code) && code >= 1 && code <= 255).toBe(true)
}

const KEYS = 'name version description command outputs output max_attempts permanent_exits env settings'.split(' ')
const word = fc.oneof(
  fc.constantFrom(
    'sh',
    '/bin/sh',
    '{dir}/x',
    '{node}',
    '../../../../bin/sh',
    '{ttr}',
    '{dir}',
    '',
    '.',
    '\0',
    'a\0b',
    '*',
  ),
  fc.string({ unit: 'binary', maxLength: 12 }),
)
const entry = fc.oneof(
  fc.tuple(fc.constant('command'), fc.array(word, { maxLength: 3 })),
  fc.tuple(fc.constant('env'), fc.dictionary(fc.oneof(fc.constantFrom('A', '__proto__', 'QWORKER_X'), word), word)),
  fc.tuple(fc.constantFrom('name', 'output', 'version'), fc.oneof(word, fc.constantFrom('json', 'pi', 1.5))),
  fc.tuple(fc.constantFrom('outputs', 'settings'), fc.array(fc.oneof(word, fc.constant('SMTP_HOST')))),
  fc.tuple(fc.constantFrom('max_attempts'), fc.oneof(fc.integer(), fc.double())),
  fc.tuple(fc.constant('permanent_exits'), fc.array(fc.integer({ min: -1, max: 300 }))),
  fc.tuple(fc.oneof(fc.constantFrom(...KEYS, '__proto__', 'constructor'), word), yamlValue),
)
/** Entries that may stand, so that what is taken is tried too. */
const soundEntry = fc.oneof(
  fc.tuple(fc.constant('env'), fc.dictionary(fc.stringMatching(/^[A-Z_]{1,9}$/), fc.string(), { maxKeys: 4 })),
  fc.tuple(fc.constant('outputs'), fc.array(fc.constantFrom('*', '*.svg', '**', '[', '{a,b}', '..', '\\'))),
  fc.tuple(fc.constant('output'), fc.constantFrom('auto', 'json', 'text')),
  fc.tuple(fc.constantFrom('version', 'description'), fc.string({ unit: 'binary' })),
  fc.tuple(fc.constant('max_attempts'), fc.integer({ min: 1, max: 1000 })),
)
/** Manifests as JSON, which is YAML: keys may stand twice. */
const nearManifest = fc
  .tuple(
    fc.boolean(),
    fc.oneof(fc.array(entry, { maxLength: 5 }), fc.uniqueArray(soundEntry, { selector: ([key]) => key })),
  )
  .map(([runs, entries]) => [...(runs ? [['command', ['sh']] as const] : []), ...entries])
  .map((entries) => `{${entries.map(([k, v]) => `${JSON.stringify(k)}: ${JSON.stringify(v) ?? 'null'}`).join(', ')}}`)

test(
  'a folder with any manifest is an algorithm that keeps its promises, or broken with a reason',
  async () => {
    const seen = { algorithms: 0, broken: 0 }
    const manifest = fc.oneof(
      { arbitrary: nearManifest, weight: 4 },
      { arbitrary: yamlText(KEYS), weight: 2 },
      { arbitrary: fc.uint8Array({ maxLength: 200 }), weight: 1 },
    )
    await fc.assert(
      fc.asyncProperty(fc.array(manifest, { minLength: 1, maxLength: 6 }), async (manifests) => {
        const catalogue = await find(manifests)
        checkCatalogue(catalogue, manifests.length)
        seen.algorithms += catalogue.algorithms.size
        seen.broken += catalogue.broken.size
      }),
      effort(150),
    )
    expectCleanPrototypes()
    expect(Math.min(seen.algorithms, seen.broken)).toBeGreaterThan(20)
  },
  FUZZ_TIMEOUT_MS,
)

test(
  'a manifest may be deep, long or full of itself: it is read in time',
  async () => {
    const shape = fc.tuple(
      fc.constantFrom(
        '[',
        '{',
        '{a: ',
        '- ',
        '? ',
        '&a [',
        '!!map ',
        '"',
        'a: &a\n',
        '*a ',
        '[*a,',
        '- - ',
        '\t',
        '#',
        '|\n ',
      ),
      fc.nat(30_000),
      fc.constantFrom('', ']', '}', '"'),
    )
    await fc.assert(
      fc.asyncProperty(shape, async ([open, times, close]) => {
        const text = `${open.repeat(times)}${close.repeat(times)}`.slice(0, 64 * 1024)
        checkCatalogue(await find([text]), 1)
      }),
      effort(4),
    )
  },
  FUZZ_TIMEOUT_MS,
)
