import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { expect, test } from 'vitest'

const root = resolve(import.meta.dirname, '..')
const src = join(root, 'src')

/** Which floor a file lives on. Floor 0 is pure; imports go down. */
function floorOf(file: string): number {
  const [room = ''] = file.split('/')
  if (room === 'job') return 0
  if (['queue', 'broker', 'run', 'store', 'tracker', 'report'].includes(room)) return 1
  if (['producer.ts', 'batch', 'publish.ts', 'outbox.ts', 'worker', 'sailor'].includes(room)) return 2
  if (['http', 'config.ts'].includes(room)) return 3
  if (room === 'cli') return 4
  throw new Error(`src/${file} lives in no room that the house knows: give it one here and on purpose`)
}

/** Each vendor has one door. */
const DOORS: [vendor: RegExp, allowed: RegExp][] = [
  [/^tree-kill$/, /^run\/kill\.ts$/],
  [/^@aws-sdk\//, /^store\/s3\.ts$/],
  [/^serve-handler$/, /^http\//],
  [/^commander$/, /^cli\//],
  [/^rolldown$/, /^cli\/finish-build\.ts$/],
  [/^yaml$/, /^run\/yaml\.ts$/],
  [/^execa$/, /^run\//],
  [/^libsql$/, /^tracker\/sqlite-file\.ts$/],
  [/^pino$/, /^report\/log\.ts$/],
  [/^valibot$/, /^run\/algorithm\.ts$/],
  [/^fastest-levenshtein$/, /^report\/suggestion\.ts$/],
]

/** The contracts of floor 1: all that floor 2 and above may see of a room with several drivers. */
const DRIVERS = /^(queue\/beanstalk(-\w+)?|tracker\/sqlite(-\w+)?|store\/(local|s3))\.ts$/

/** Pure rooms take nothing from outside; these modules bring clocks, disks and processes. */
const PURE_FORBIDDEN = /\b(Date\.now|new Date\(\)|performance\.now|Math\.random|process\.|setTimeout|setInterval)\b/

interface Import {
  readonly from: string
  readonly target: string
  readonly typeOnly: boolean
}

const files = readdirSync(src, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts'))
  .sort()
const sources = new Map(files.map((file) => [file, readFileSync(join(src, file), 'utf8')]))

function importsOf(file: string): Import[] {
  const found: Import[] = []
  const pattern =
    /(?:^|\n)\s*(import|export)\s+(type\s)?[^'"\n;]*?(?:\{[^}]*\}[^'"\n;]*?)?from\s+['"]([^'"]+)['"]|import\(\s*['"]([^'"]+)['"]\s*\)|(?:^|\n)import\s+['"]([^'"]+)['"]/g
  for (const match of withoutComments(sources.get(file) ?? '').matchAll(pattern)) {
    const target = match[3] ?? match[4] ?? match[5] ?? ''
    found.push({ from: file, target, typeOnly: match[2] !== undefined })
  }
  return found
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '$1')
}

function localTarget(entry: Import): string | undefined {
  return entry.target.startsWith('.') ? relative(src, resolve(src, dirname(entry.from), entry.target)) : undefined
}

const all = files.flatMap(importsOf)

test('the house test sees the imports: a file that has none of ours is a leaf', () => {
  expect(all.length).toBeGreaterThan(100)
  expect(importsOf('worker/slot.ts').map(({ target }) => target)).toContain('../queue/queue.ts')
})

test('imports go down', () => {
  const wrong = all.filter((entry) => {
    const target = localTarget(entry)
    return target !== undefined && floorOf(target) > floorOf(entry.from)
  })
  expect(wrong).toEqual([])
})

test('rooms on floor 1 do not know each other', () => {
  const wrong = all.filter((entry) => {
    const target = localTarget(entry)
    return (
      target !== undefined &&
      floorOf(entry.from) === 1 &&
      floorOf(target) === 1 &&
      dirname(target) !== dirname(entry.from)
    )
  })
  expect(wrong).toEqual([])
})

test('nobody but its own contract knows a driver', () => {
  const wrong = all.filter((entry) => {
    const target = localTarget(entry)
    return target !== undefined && DRIVERS.test(target) && dirname(target) !== dirname(entry.from)
  })
  expect(wrong).toEqual([])
})

test('one vendor, one door', () => {
  const wrong = all.filter(({ target, from }) =>
    DOORS.some(([vendor, allowed]) => vendor.test(target) && !allowed.test(from)),
  )
  expect(wrong).toEqual([])
  const doorless = all.filter(
    ({ target }) =>
      !target.startsWith('.') && !target.startsWith('node:') && !DOORS.some(([vendor]) => vendor.test(target)),
  )
  expect(doorless).toEqual([])
})

test('the S3 driver is loaded only when a bucket is configured', () => {
  const eager = all.filter((entry) => localTarget(entry) === 'store/s3.ts')
  expect(eager).toHaveLength(1)
  expect(sources.get('store/store.ts')).toMatch(/await import\('\.\/s3\.ts'\)/)
})

test('the environment is read in config.ts alone', () => {
  // The AWS SDK takes its switch for a warning from the environment only: it is set there, not read.
  const sdkSwitch = "process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = 'true'"
  expect(
    files.filter(
      (file) =>
        file !== 'config.ts' &&
        withoutComments(sources.get(file) ?? '')
          .replace(sdkSwitch, '')
          .includes('process.env'),
    ),
  ).toEqual([])
})

test('programs end in cli/ alone', () => {
  expect(
    files.filter(
      (file) => !file.startsWith('cli/') && /process\.exit\(/.test(withoutComments(sources.get(file) ?? '')),
    ),
  ).toEqual([])
})

test('rooms on floors 0 to 2 print nothing', () => {
  const wrong = files.filter(
    (file) =>
      floorOf(file) <= 2 &&
      !file.startsWith('sailor/') &&
      /\bconsole\.|process\.std(out|err)\b/.test(withoutComments(sources.get(file) ?? '')),
  )
  expect(wrong).toEqual([])
})

test('floor 0 is pure: no clock, no chance, no input or output', () => {
  for (const file of files.filter((name) => floorOf(name) === 0)) {
    expect(withoutComments(sources.get(file) ?? ''), file).not.toMatch(PURE_FORBIDDEN)
    expect(
      importsOf(file).filter(({ target }) => !target.startsWith('./')),
      file,
    ).toEqual([])
  }
})

test('no import goes in a circle', () => {
  const graph = new Map(
    files.map((file) => [
      file,
      importsOf(file)
        .filter(({ typeOnly }) => !typeOnly)
        .map(localTarget),
    ]),
  )
  const dynamic = new Set(
    all
      .filter((entry) => new RegExp(`import\\(\\s*'${entry.target}'`).test(sources.get(entry.from) ?? ''))
      .map((entry) => `${entry.from} ${localTarget(entry)}`),
  )
  const visit = (file: string, path: string[]): void => {
    if (path.includes(file)) throw new Error(`circle: ${[...path, file].join(' -> ')}`)
    for (const next of graph.get(file) ?? []) {
      if (next !== undefined && !dynamic.has(`${file} ${next}`)) visit(next, [...path, file])
    }
  }
  for (const file of files) visit(file, [])
})

test('files stay readable: none over 600 lines, no junk-drawer names', () => {
  for (const [file, text] of sources) {
    expect(text.split('\n').length, file).toBeLessThanOrEqual(600)
    expect(file).not.toMatch(/(^|\/)(utils?|helpers?|common|shared|lib|misc|types|index)(\.ts|\/)/)
  }
})

test('functions stay readable: none over 60 lines', () => {
  const long: string[] = []
  for (const [file, text] of sources) {
    const lines = text.split('\n')
    for (let i = 0; i < lines.length; i++) {
      const opening =
        /^(\s*)(?:export )?(?:async )?(?:function\b|(?:private |static )?(?:async )?[a-zA-Z]+\([^=]*\)[^=]*\{$)/.exec(
          lines[i] ?? '',
        )
      if (opening === null || /^\s*(if|for|while|switch|return|else)\b/.test(lines[i] ?? '')) continue
      const end = lines.findIndex((line, j) => j > i && new RegExp(`^${opening[1]}\\}`).test(line))
      if (end - i + 1 > 60) long.push(`${file}:${i + 1} (${end - i + 1} lines)`)
    }
  }
  expect(long).toEqual([])
})

test('the top level holds what the plan names and no more', () => {
  const allowed =
    /^(bin|src|etc|algorithms|test|dist|node_modules|package(-lock)?\.json|tsconfig(\.build)?\.json|README\.md|LICENSE|biome\.json|knip\.json|vitest\.config\.ts|\..+)$/
  // What is tracked counts: a user's own folder beside them is nobody's business. Outside a checkout all is the package's.
  const tracked = spawnSync('git', ['ls-files'], { cwd: root, encoding: 'utf8' })
  const names = tracked.status === 0 ? tracked.stdout.trim().split('\n') : readdirSync(root)
  expect([...new Set(names.map((name) => name.split('/')[0] ?? ''))].filter((name) => !allowed.test(name))).toEqual([])
  // A package of its own: Node starts a program sooner when it is no ES module.
  for (const bin of readdirSync(join(root, 'bin')).filter((name) => name !== 'package.json')) {
    expect(statSync(join(root, 'bin', bin)).mode & 0o111, bin).not.toBe(0)
    expect(readFileSync(join(root, 'bin', bin), 'utf8').split('\n').length, bin).toBeLessThan(10)
  }
})
