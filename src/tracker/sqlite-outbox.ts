/** The outbox in the tracker's SQLite file. */

import type { TrackerFile } from './sqlite-file.ts'
import type { Outbox, OutboxEntry, OutboxOutcome, OutboxState } from './tracker.ts'

const ERROR_CHARACTERS = 1000

/** Part of a transaction. */
export function putIntoOutbox(file: TrackerFile, uuid: string, now: number): void {
  const [next] = file.all("UPDATE counter SET value = value + 1 WHERE name = 'put' RETURNING value")
  file.run(
    `INSERT INTO outbox (uuid, version, since, free, noted) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT DO UPDATE SET version = excluded.version`,
    [uuid, Number(next?.value), new Date(now).toISOString(), now, now],
  )
}

export function makeOutbox(file: TrackerFile, now: () => number): Outbox {
  return {
    put: (uuid) => file.write('durable', () => putIntoOutbox(file, uuid, now())),
    // Leases need not outlive a power failure: their takers do not either.
    take: (owner, leaseSeconds) => file.write('fast', () => take(file, owner, leaseSeconds, now())),
    settle: (entry, owner, outcome) => file.write('durable', () => settle(file, entry, owner, outcome, now())),
    giveBack: (owner) =>
      file.write('fast', () => {
        file.run('UPDATE outbox SET owner = NULL, free = 0 WHERE owner = ?', [owner])
      }),
    has: (uuid) => file.look(() => file.has('SELECT 1 FROM outbox WHERE uuid = ?', uuid)),
    state: () => file.read(() => outboxState(file, now())),
  }
}

function take(file: TrackerFile, owner: string, leaseSeconds: number, now: number): OutboxEntry | undefined {
  const due = 'SELECT place FROM outbox WHERE free <= ?1 OR noted > ?1 ORDER BY place LIMIT 1'
  const [row] = file.all(`SELECT * FROM outbox WHERE place = (${due})`, now)
  if (row === undefined) return undefined
  const free = now + Math.ceil(leaseSeconds * 1000)
  file.run('UPDATE outbox SET owner = ?, taken = version, free = ?, noted = ? WHERE place = ?', [
    owner,
    free,
    now,
    row.place ?? null,
  ])
  return {
    uuid: String(row.uuid),
    version: Number(row.version),
    tries: Number(row.tries),
    since: String(row.since),
    error: row.error === null ? undefined : String(row.error),
  }
}

function settle(file: TrackerFile, entry: OutboxEntry, owner: string, outcome: OutboxOutcome, now: number): void {
  const taken = 'SELECT place, version FROM outbox WHERE uuid = ? AND owner = ? AND taken = ?'
  const [row] = file.all(taken, entry.uuid, owner, entry.version)
  if (row === undefined) return
  const place = row.place ?? null
  if ('error' in outcome) {
    const free = now + Math.ceil(outcome.retryInSeconds * 1000)
    const values = [outcome.error.slice(0, ERROR_CHARACTERS), free, now, place]
    file.run(
      'UPDATE outbox SET owner = NULL, tries = tries + 1, error = ?, free = ?, noted = ? WHERE place = ?',
      values,
    )
  } else if (row.version === entry.version) {
    file.run('DELETE FROM outbox WHERE place = ?', [place])
  } else {
    file.run('UPDATE outbox SET owner = NULL, tries = 0, error = NULL, free = 0 WHERE place = ?', [place])
  }
}

function outboxState(file: TrackerFile, now: number): OutboxState {
  const [first] = file.all('SELECT since FROM outbox ORDER BY place LIMIT 1')
  const [sums] = file.all(
    `SELECT count(*) AS length, min(CASE WHEN free <= ?1 OR noted > ?1 THEN ?1 WHEN owner IS NULL THEN free END) AS due,
     json_group_array(DISTINCT owner) FILTER (WHERE owner IS NOT NULL) AS owners
     FROM outbox`,
    now,
  )
  return {
    length: Number(sums?.length ?? 0),
    oldest: first === undefined ? undefined : String(first.since),
    dueInSeconds: typeof sums?.due === 'number' ? (sums.due - now) / 1000 : undefined,
    owners: JSON.parse(String(sums?.owners ?? '[]')) as string[],
  }
}
