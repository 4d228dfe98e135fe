import { execFileSync, spawn, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { describe, expect, onTestFinished, type TestContext, test } from 'vitest'
import { openSqlite, type SqliteOptions } from '../../src/tracker/sqlite.ts'
import { TrackerFile } from '../../src/tracker/sqlite-file.ts'
import { MIGRATIONS } from '../../src/tracker/sqlite-format.ts'
import {
  openTracker,
  sqliteUrl,
  type Tracker,
  TrackerError,
  describeTracker as tellOf,
} from '../../src/tracker/tracker.ts'
import { leaveOut, PROJECT } from '../support/installation.ts'
import { attempt, describeTracker, ending, failureOf, firstLine, OTHER, open, startProgram, UUID } from './contract.ts'

describeTracker('SQLite', () => sqliteUrl(place()))

function makeTop(): string {
  const top = mkdtempSync(join(tmpdir(), 'qworker-tracker-'))
  onTestFinished(() => rmSync(top, { recursive: true, force: true }))
  return top
}

/** A path for a tracker whose folder is not there yet. */
function place(): string {
  return join(makeTop(), 'state', 'tracker.db')
}

async function openWith(path: string, options: SqliteOptions): Promise<Tracker> {
  const tracker = await openSqlite(path, options)
  onTestFinished(() => tracker.close())
  return tracker
}

/** A closed tracker with 200 jobs; the file is a copy that no connection of this process has open. */
async function makeUsed(): Promise<string> {
  const path = place()
  const tracker = await openTracker(sqliteUrl(path))
  for (let i = 0; i < 200; i++) {
    const uuid = String(i).padStart(32, '0')
    await tracker.begin(attempt({ uuid }), 0)
    await tracker.end(uuid, 1, ending({ record: JSON.stringify('x'.repeat(500)) }))
  }
  await tracker.close()
  const used = join(dirname(path), 'used.db')
  copyFileSync(path, used)
  return used
}

const LIBSQL = `const db = new (require(${JSON.stringify(join(PROJECT, 'node_modules/libsql'))}))(process.argv[1]);`

/** Runs SQL in a process of its own. */
function sql(path: string, text: string): void {
  execFileSync(process.execPath, ['-e', `${LIBSQL} db.exec(process.argv[2])`, path, text], { stdio: 'pipe' })
}

/** A process that has begun to write and is not done. */
async function holdTransaction(path: string) {
  const program = `${LIBSQL} db.exec("BEGIN IMMEDIATE; UPDATE job SET type = 'half'"); console.log('holds')
    process.on('SIGUSR2', () => { db.exec('ROLLBACK'); process.exit() }); setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['-e', program, path], { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  expect(await firstLine(child)).toBe('holds')
  return child
}

describe('where the file is', () => {
  test('folder and files are made for this user alone', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    await tracker.begin(attempt(), 0)
    expect(statSync(dirname(path)).mode & 0o777).toBe(0o700)
    const files = readdirSync(dirname(path)).sort()
    expect(files).toEqual(['tracker.db', 'tracker.db-shm', 'tracker.db-wal'])
    for (const file of files) expect(statSync(join(dirname(path), file)).mode & 0o777, file).toBe(0o600)
  })

  test('no folder is made below a directory that does not exist', async () => {
    const top = makeTop()
    const { code, message } = await failureOf(openTracker(sqliteUrl(join(top, 'disk', 'state', 'tracker.db'))))
    expect(code).toBe('denied')
    expect(message).toContain(`${join(top, 'disk')} does not exist: mount its disk`)
    expect(readdirSync(top)).toEqual([])
  })

  test('a path may have any characters', async () => {
    const path = join(makeTop(), 'a b#c?d%20é', 'tracker.db')
    await (await open(sqliteUrl(path))).begin(attempt(), 0)
    expect(existsSync(path)).toBe(true)
  })

  test.each(['postgres://host/db', 'sqlite:relative.db', 'sqlite://host/x.db', '/x.db'])(
    'no driver takes %s',
    async (url) => {
      expect((await failureOf(openTracker(url))).message).toContain('use sqlite:///absolute/path/tracker.db')
    },
  )

  test('a file that was moved away or replaced while it is open is not written any more', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    await tracker.begin(attempt(), 0)
    renameSync(path, `${path}.away`)
    const { code, message } = await failureOf(tracker.end(UUID, 1, ending()))
    expect([code, message]).toEqual(['failed', expect.stringContaining('restart all workers')])
  })
})

describe('files that cannot be used', () => {
  const STEP = /stop all workers that use it and move it away.*counted anew from the status documents/

  test('a directory in its place is refused', async () => {
    const path = place()
    mkdirSync(path, { recursive: true })
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual([
      'denied',
      `the tracker ${path} is a directory, expected a file: move it away, and start again`,
    ])
  })

  test('a text file is refused and stays as it is', async () => {
    const path = join(makeTop(), 'tracker.db')
    writeFileSync(path, 'no database '.repeat(1000))
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['corrupt', expect.stringMatching(STEP)])
    expect(message).toContain(path)
    expect(readFileSync(path, 'utf8')).toBe('no database '.repeat(1000))
  })

  test('a truncated file is refused', async () => {
    const path = await makeUsed()
    truncateSync(path, Math.floor(statSync(path).size / 2 / 4096) * 4096)
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['corrupt', expect.stringMatching(STEP)])
  })

  test('a file with a damaged page is refused', async () => {
    const path = await makeUsed()
    const bytes = readFileSync(path)
    bytes.fill(0xa5, 5 * 4096, 6 * 4096)
    writeFileSync(path, bytes)
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['corrupt', expect.stringMatching(STEP)])
  })

  test('a page that is damaged later is told by the call that meets it', async () => {
    const path = await makeUsed()
    const tracker = await open(sqliteUrl(path))
    const program = `const fs = require('fs'); const f = fs.openSync(process.argv[1], 'r+'); const n = fs.fstatSync(f).size
      fs.writeSync(f, Buffer.alloc(n / 2, 0xa5), 0, n / 2, n / 2)`
    execFileSync(process.execPath, ['-e', program, path])
    // A write by another process empties the cache.
    sql(path, "UPDATE counter SET value = value + 1 WHERE name = 'probe'")
    const errors = []
    for (let i = 0; i < 200; i++)
      errors.push(await tracker.read(String(i).padStart(32, '0')).catch((error) => error.code))
    expect(errors).toContain('corrupt')
  })

  test("another program's database is refused and stays as it is", async () => {
    const path = join(makeTop(), 'tracker.db')
    sql(path, 'CREATE TABLE theirs (x)')
    const before = readFileSync(path)
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['failed', expect.stringMatching(/another program .*move it away/)])
    expect(readFileSync(path)).toEqual(before)
  })

  test('a file of a newer version is refused', async () => {
    const path = await makeUsed()
    sql(path, 'PRAGMA user_version = 99')
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['newer', expect.stringMatching(/format 99, .* install the version that wrote it/)])
  })

  test('an empty file is a new tracker', async () => {
    const path = join(makeTop(), 'tracker.db')
    writeFileSync(path, '')
    expect(await (await open(sqliteUrl(path))).begin(attempt(), 0)).toBe(1)
  })
})

/** A file of the first format: a job that is tried for the third time, one that is complete, one that was only marked. */
async function makeOlder(): Promise<string> {
  const path = join(makeTop(), 'tracker.db')
  const columns = 'uuid, fence, type, ticket, tube, attempt, max_attempts, worker, run, started, deadline'
  const { type, ticket, tube, maxAttempts, worker, run, started, deadline } = attempt()
  const put = (uuid: string, fence: number, ended: string) => {
    const values = [uuid, fence, type, ticket, tube, fence, maxAttempts, worker, run, started, deadline]
    return `INSERT INTO attempt (${columns}, ended, counts, record)
      VALUES (${values.map((value) => (typeof value === 'number' ? value : `'${value}'`)).join(', ')}, ${ended})`
  }
  const jobs = `('${UUID}', 'forecast', 'open', 3, 1), ('${OTHER}', 'forecast', 'complete', 1, 2), ('marked', 'x', 'failed', 0, 3)`
  const steps = [
    ...[MIGRATIONS[0], 'PRAGMA application_id = 1903651698', 'PRAGMA user_version = 1'],
    `INSERT INTO job VALUES ${jobs}`,
    put(UUID, 1, "'then', 0, '{}'"),
    put(UUID, 2, "'later', 1, '[]'"),
    put(UUID, 3, 'NULL, 1, NULL'),
    put(OTHER, 1, "'then', 1, '{}'"),
  ]
  sql(path, steps.join('\n;'))
  return path
}

describe('a file of an older format', () => {
  test('is brought up to date with all its jobs and attempts', async () => {
    const path = await makeOlder()
    expect(await tellOf(sqliteUrl(path))).toMatchObject({ isToBeMigrated: true })
    const now = () => 4
    const tracker = await openWith(path, { now })
    const third = { ...attempt({ attempt: 3 }), fence: 3, ended: undefined, counts: true, record: undefined }
    expect(await tracker.read(UUID)).toEqual({
      ...{ uuid: UUID, type: 'forecast', state: 'open', fence: 3 },
      attempts: [
        { ...attempt(), fence: 1, ended: 'then', counts: false, record: '{}' },
        { ...attempt({ attempt: 2 }), fence: 2, ended: 'later', counts: true, record: '[]' },
        third,
      ],
    })
    expect(await tracker.openAttempts('w1')).toEqual([third])
    expect(await tracker.read(OTHER)).toMatchObject({ state: 'complete', fence: 1, attempts: [{ ended: 'then' }] })
    expect(await tracker.read('marked')).toEqual({ uuid: 'marked', type: 'x', state: 'failed', fence: 0, attempts: [] })
    expect(await tracker.end(UUID, 3, ending())).toBe(true)
    expect(await tracker.begin(attempt({ uuid: OTHER }), 1)).toBe(2)
    expect(await tracker.begin(attempt({ uuid: 'marked' }), 0)).toBe(1)
  })

  test('is brought up to date once by two that open it at the same time', async () => {
    const path = await makeOlder()
    const children = ['1', '2'].map((digit) =>
      startProgram('begin.js', sqliteUrl(path), 'w', OTHER.replace(/..$/, `a${digit}`)),
    )
    for (const { told } of children) expect(await told).toBe('1')
    expect((await (await openWith(path, { now: () => 4 })).read(UUID))?.attempts).toHaveLength(3)
  })
})

describe('a look at a tracker', () => {
  test('counts, and changes nothing: neither a file that is there, nor one that is not', async () => {
    const path = place()
    expect(await tellOf(sqliteUrl(path))).toBeUndefined()
    expect(existsSync(dirname(path))).toBe(false)
    const used = await makeUsed()
    const before = readFileSync(used)
    expect(await tellOf(sqliteUrl(used))).toEqual({ isToBeMigrated: false, openAttempts: 0, copies: 0 })
    expect(readFileSync(used)).toEqual(before)
    const tracker = await open(sqliteUrl(path))
    await tracker.begin(attempt(), 0)
    await tracker.outbox.put(OTHER)
    expect(await tellOf(sqliteUrl(path))).toEqual({ isToBeMigrated: false, openAttempts: 1, copies: 1 })
    expect(await tracker.end(UUID, 1, ending())).toBe(true)
  })

  test('brings no older format up to date, and refuses what a worker would', async () => {
    const older = join(makeTop(), 'tracker.db')
    writeFileSync(older, '')
    expect(await tellOf(sqliteUrl(older))).toMatchObject({ isToBeMigrated: true })
    expect(statSync(older).size).toBe(0)
    const newer = await makeUsed()
    sql(newer, 'PRAGMA user_version = 99')
    expect((await failureOf(tellOf(sqliteUrl(newer)))).code).toBe('newer')
    const folder = makeTop()
    expect((await failureOf(tellOf(sqliteUrl(folder)))).code).toBe('denied')
    expect((await failureOf(tellOf('postgres://nowhere'))).code).toBe('failed')
  })

  test('goes on while another process writes, for it waits', async () => {
    const path = await makeUsed()
    const writer = await holdTransaction(path)
    const found = tellOf(sqliteUrl(path))
    writer.kill('SIGUSR2')
    expect(await found).toMatchObject({ openAttempts: 0 })
  })
})

/** Makes a path unchangeable, even for root. */
function lock(context: TestContext, path: string): void {
  const came = spawnSync('chattr', ['+i', path], { encoding: 'utf8' })
  if (came.status !== 0) leaveOut(context, `chattr +i: ${came.error?.message ?? came.stderr.trim()}`)
  onTestFinished(() => void spawnSync('chattr', ['-i', path]))
}

function mountMemory(context: TestContext, size: string): string {
  const point = makeTop()
  const came = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'none', point], { encoding: 'utf8' })
  if (came.status !== 0) leaveOut(context, `mount: ${came.error?.message ?? came.stderr.trim()}`)
  // Lazily: a closed connection keeps its descriptors.
  onTestFinished(() => void spawnSync('umount', ['-l', point]))
  return point
}

describe('disks that cannot be written', () => {
  test('a file that may not be changed is told at opening', async (context) => {
    const path = await makeUsed()
    lock(context, path)
    const { code, message } = await failureOf(openTracker(sqliteUrl(path)))
    expect([code, message]).toEqual(['denied', expect.stringContaining('give this user write permission')])
  })

  test('a folder that may not be changed is told at opening, with a file in it or without', async (context) => {
    const path = await makeUsed()
    lock(context, dirname(path))
    expect((await failureOf(openTracker(sqliteUrl(path)))).code).toBe('denied')
    expect((await failureOf(openTracker(sqliteUrl(`${path}.new`)))).code).toBe('denied')
  })

  test('a disk that is mounted for reading only is told at opening, and while the tracker is open', async (context) => {
    const point = mountMemory(context, '4m')
    copyFileSync(await makeUsed(), join(point, 'used.db'))
    execFileSync('mount', ['-o', 'remount,ro', point])
    const { code, message } = await failureOf(openTracker(sqliteUrl(join(point, 'used.db'))))
    expect([code, message]).toEqual(['denied', expect.stringContaining('mount the disk for writing')])
  })

  test('a full disk is told, nothing is half written, and work goes on when there is space', async (context) => {
    const point = mountMemory(context, '1m')
    const tracker = await open(sqliteUrl(join(point, 'tracker.db')))
    await tracker.begin(attempt(), 0)
    const filler = join(point, 'filler')
    try {
      writeFileSync(filler, Buffer.alloc(2_000_000))
    } catch {
      // that was the purpose
    }
    const record = JSON.stringify('x'.repeat(100_000))
    const failure = await failureOf(tracker.end(UUID, 1, ending({ record, state: 'complete', outbox: true })))
    expect([failure.code, failure.message]).toEqual(['full', expect.stringContaining('free some on its disk')])
    expect(await tracker.holds(UUID, 1)).toBe(true)
    expect(await tracker.outbox.has(UUID)).toBe(false)
    expect((await failureOf(openTracker(sqliteUrl(join(point, 'second.db'))))).code).toBe('full')
    rmSync(filler)
    expect(await tracker.end(UUID, 1, ending({ record, state: 'complete', outbox: true }))).toBe(true)
    expect(await tracker.begin(attempt(), 1)).toBe(2)
  })
})

/** Transactions in a write-ahead log that began empty: each ends with a frame that tells the size of the file. */
function commitsIn(path: string): number {
  const log = readFileSync(`${path}-wal`)
  const frameBytes = 24 + 4096
  let commits = 0
  for (let at = 32; at + frameBytes <= log.length; at += frameBytes) if (log.readUInt32BE(at + 4) > 0) commits++
  return commits
}

describe('writes that are asked for together', () => {
  test('are one transaction, and those that are asked for one after the other are not', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    const uuids = Array.from({ length: 8 }, (_, i) => String(i).padStart(32, '0'))
    const fences = await Promise.all(uuids.map((uuid) => tracker.begin(attempt({ uuid }), 0)))
    expect(fences).toEqual(uuids.map(() => 1))
    expect(commitsIn(path)).toBe(1)
    for (const uuid of uuids.slice(0, 3)) await tracker.end(uuid, 1, ending())
    expect(commitsIn(path)).toBe(4)
    const ends = await Promise.all(
      uuids.map((uuid) => tracker.end(uuid, 1, ending({ state: 'complete', outbox: true }))),
    )
    expect(ends).toEqual([false, false, false, true, true, true, true, true])
    expect(commitsIn(path)).toBe(5)
  })

  test('fail alone: the others are written, once', async () => {
    const path = join(makeTop(), 'file.db')
    const file = new TrackerFile(path, 1000)
    onTestFinished(() => file.release())
    file.exec('CREATE TABLE taken (place INTEGER PRIMARY KEY)')
    const put = (place: number) => file.write('fast', () => file.run('INSERT INTO taken VALUES (?)', [place]))
    const came = await Promise.allSettled([put(1), put(2), put(1), put(3)])
    expect(came.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected', 'fulfilled'])
    expect(came[2]).toMatchObject({ reason: { code: 'failed', message: expect.stringContaining('UNIQUE') } })
    expect(file.all('SELECT place FROM taken').map((row) => row.place)).toEqual([1, 2, 3])
    await put(4)
  })

  test('are written all when the process that was in their way is done', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    const other = await holdTransaction(path)
    const begun = ['1', '2', '3'].map((digit) => tracker.begin(attempt({ uuid: OTHER.replace(/.$/, digit) }), 0))
    expect(await Promise.race([...begun, tracker.read(UUID)])).toBeUndefined()
    other.kill('SIGUSR2')
    expect(await Promise.all(begun)).toEqual([1, 1, 1])
    await tracker.begin(attempt(), 0)
  })
})

describe('processes that share the file', () => {
  test('one that is stopped inside a transaction hinders writers for their patience only, and readers not at all', async () => {
    const path = place()
    const tracker = await openWith(path, { patienceMs: 1500 })
    await tracker.begin(attempt(), 0)
    const other = await holdTransaction(path)
    other.kill('SIGSTOP')
    const delay = monitorEventLoopDelay({ resolution: 5 })
    delay.enable()
    const begun = performance.now()
    // Many calls wait as one: each would block the event loop a little.
    const ends = Array.from({ length: 8 }, () => failureOf(tracker.end(UUID, 1, ending())))
    expect(await tracker.read(UUID)).toMatchObject({ type: 'forecast' })
    for (const { code, message } of await Promise.all(ends)) {
      expect([code, message]).toEqual(['busy', expect.stringMatching(/more than 1.5 s: .*continue or end the one/)])
    }
    expect(performance.now() - begun).toBeLessThan(4000)
    delay.disable()
    expect(delay.percentile(90) / 1e6).toBeLessThan(100)
    expect((await failureOf(openSqlite(path, { patienceMs: 100 }))).code).toBe('busy')
    const ended = tracker.end(UUID, 1, ending())
    other.kill('SIGCONT')
    other.kill('SIGUSR2')
    expect(await ended).toBe(true)
  })

  test('what one that is killed inside a transaction wrote is not there, and its lock is free', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    await tracker.begin(attempt(), 0)
    const other = await holdTransaction(path)
    other.kill('SIGKILL')
    expect(await tracker.end(UUID, 1, ending())).toBe(true)
    expect(await tracker.read(UUID)).toMatchObject({ type: 'forecast', state: 'open' })
  })

  test('the schema itself forbids two open attempts of a job', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    await tracker.begin(attempt(), 0)
    const second = "INSERT INTO job (uuid, type, state, fence) SELECT uuid, type, 'open', 2 FROM job"
    expect(() => sql(path, second)).toThrow('UNIQUE constraint failed: job.uuid')
  })

  test('what makes a job fail for good or touches the outbox is forced to the disk, and nothing else', async (context) => {
    if (spawnSync('strace', ['-f', '-o', '/dev/null', 'true']).status !== 0)
      leaveOut(context, 'strace cannot trace here')
    const trace = join(makeTop(), 'trace')
    const { child, told } = startProgram('durable.js', sqliteUrl(place()), 'w', UUID)
    await told
    const tracer = spawn('strace', ['-f', '-e', 'trace=fsync,fdatasync', '-o', trace, '-p', String(child.pid)])
    await firstLine(Object.assign(tracer, { stdout: tracer.stderr }))
    child.kill('SIGUSR2')
    await new Promise((resolve) => tracer.on('exit', resolve))
    expect(readFileSync(trace, 'utf8').match(/sync\(/g)).toHaveLength(4)
  })
})

describe('years', () => {
  const DAY_MS = 86_400_000

  test('final jobs are forgotten after 30 days, and none that waits in the outbox or has an open attempt', async () => {
    const path = place()
    let now = Date.now()
    const tracker = await openWith(path, { now: () => now })
    const uuids = Array.from({ length: 450 }, (_, i) => String(i).padStart(32, '0'))
    for (const [i, uuid] of uuids.entries()) {
      await tracker.begin(attempt({ uuid }), 0)
      await tracker.end(uuid, 1, ending({ state: i % 2 ? 'complete' : 'failed' }))
    }
    const [inOutbox = '', running = '', ...old] = uuids
    await tracker.outbox.put(inOutbox)
    await tracker.begin(attempt({ uuid: running }), 1)
    await tracker.begin(attempt(), 0)
    await tracker.end(UUID, 1, ending())
    now += 29 * DAY_MS
    const known = async (some: string[]) => {
      const later = await openWith(path, { now: () => now })
      const jobs = await Promise.all(some.map((uuid) => later.read(uuid)))
      return jobs.filter((job) => job !== undefined && job.attempts.length > 0).length
    }
    expect(await known(old)).toBe(448)
    now += 2 * DAY_MS
    expect(await known(old)).toBe(0)
    expect(await known([inOutbox, running, UUID])).toBe(3)
    now += 366 * DAY_MS
    expect(await known([inOutbox, running, UUID])).toBe(2)
  })

  test('old jobs are forgotten also by a worker that is never restarted', async () => {
    const path = place()
    let now = Date.now()
    const tracker = await openWith(path, { now: () => now })
    await tracker.mark(OTHER, 'forecast', 'complete', false)
    now += 31 * DAY_MS
    expect(await tracker.read(OTHER)).toBeDefined()
    for (let fence = 0; fence < 1000; fence++) {
      await tracker.begin(attempt(), fence)
      await tracker.end(UUID, fence + 1, ending())
    }
    await tracker.close()
    expect(await (await open(sqliteUrl(path))).read(OTHER)).toBeUndefined()
  })

  test('the write-ahead log does not grow for ever, also when another process has the file open', async () => {
    const path = place()
    const tracker = await open(sqliteUrl(path))
    await open(sqliteUrl(path))
    const record = JSON.stringify('x'.repeat(20_000))
    for (let fence = 0; fence < 1500; fence++) {
      await tracker.begin(attempt(), fence)
      await tracker.end(UUID, fence + 1, ending({ record }))
    }
    expect(statSync(`${path}-wal`).size).toBeLessThan(8_388_608)
    expect(statSync(path).size).toBeLessThan(8_388_608)
  })

  test('a clock that was put back does not keep the outbox waiting', async () => {
    let now = Date.now()
    const tracker = await openWith(place(), { now: () => now })
    await tracker.outbox.put(UUID)
    const entry = await tracker.outbox.take('a', 60)
    await tracker.outbox.settle(entry!, 'a', { retryInSeconds: 60, error: 'no network' })
    expect(await tracker.outbox.take('a', 60)).toBeUndefined()
    now -= 400 * DAY_MS
    expect(await tracker.outbox.state()).toMatchObject({ dueInSeconds: 0 })
    expect((await tracker.outbox.take('a', 60))?.uuid).toBe(UUID)
  })
})

test('failures are TrackerErrors with their cause', async () => {
  const path = join(makeTop(), 'tracker.db')
  writeFileSync(path, 'x'.repeat(5000))
  const failure = await failureOf(openTracker(sqliteUrl(path)))
  expect(failure).toBeInstanceOf(TrackerError)
  expect(failure.cause).toMatchObject({ code: 'SQLITE_NOTADB' })
})
