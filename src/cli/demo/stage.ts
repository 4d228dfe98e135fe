/** The programs of the demo at work in its room: a worker, and producers that come and go. */

import { join } from 'node:path'
import { withoutControls } from '../exit.ts'
import { type Live, makeLive } from './live.ts'
import { type Minded, makeLineReader, startMinded } from './minded.ts'
import { makeRoom, type Room, removeRoom } from './room.ts'
import type { Told } from './story.ts'

export interface Stage {
  readonly room: Room
  readonly live: Live
  /** Resolves when the worker takes jobs; stays open when it never does. */
  readonly ready: Promise<void>
  /** its exit code; as those of producers, once all that it said was heard */
  readonly workerEnded: Promise<number>
  /** what the worker complained of before it was ready */
  readonly complaints: readonly string[]
  /** Puts a job and waits for its end. */
  produce(args: readonly string[]): Promise<Produced>
  /** Ends all programs and removes the room. */
  close(): Promise<void>
}

export interface Produced {
  readonly exitCode: number
  /** stdout: the result */
  readonly document: string
  /** where the result is */
  readonly url: string
  /** what it said beside that */
  readonly complaints: readonly string[]
}

export interface StageOptions {
  readonly httpPort: number | undefined
  /** the folder with bin/ */
  readonly project: string
  readonly print: (told: Told) => void
  /** A program is started: as it would be called from `project`. */
  readonly printCommand: (words: readonly string[]) => void
}

/** @throws what the file system throws where no room can be made */
export async function openStage({ httpPort, project, print, printCommand }: StageOptions): Promise<Stage> {
  const room = await makeRoom(httpPort)
  const complaints: string[] = []
  let isReady = false
  let tellReady: () => void = () => undefined
  const ready = new Promise<void>((resolve) => {
    tellReady = resolve
  })
  const live = makeLive(print, (event) => {
    if (event !== 'worker_ready') return
    isReady = true
    tellReady()
  })
  const start = (
    name: string,
    args: readonly string[],
    rest: Pick<Parameters<typeof startMinded>[0], 'onOut' | 'onErrorLine'>,
    folder?: string,
  ) => {
    const all = ['-c', room.rcFile, ...args]
    printCommand([`bin/${name}`, ...all])
    const program = join(project, 'bin', name)
    return startMinded({ program, args: all, home: room.folder, ...(folder === undefined ? {} : { folder }), ...rest })
  }
  const onErrorLine = (text: string) => {
    if (isReady) print({ uuid: undefined, type: undefined, text, tone: 'bad' })
    else complaints.push(withoutControls(text))
  }
  const worker = start('qworker', [], { onOut: makeLineReader(live.hear), onErrorLine }, room.folder)
  const producers = new Set<Minded>()
  return {
    room,
    live,
    ready,
    workerEnded: worker.ended,
    complaints,
    produce: (args) => produce(live, producers, (rest) => start('qproducer', args, rest)),
    async close() {
      await Promise.all([worker, ...producers].map((each) => each.end()))
      // The minder has done it, unless it was killed.
      await removeRoom(room.folder)
    },
  }
}

type Start = (rest: Pick<Parameters<typeof startMinded>[0], 'onOut' | 'onErrorLine'>) => Minded

async function produce(live: Live, producers: Set<Minded>, start: Start): Promise<Produced> {
  const expected = live.expectJob()
  const complaints: string[] = []
  let document = ''
  let url = ''
  let type = ''
  const producer = start({
    onOut: (text) => {
      document += text
    },
    onErrorLine: (line) => {
      // The two lines that it prints of every job.
      const [, uuid] = /^result URL: \S*\/([0-9a-f]{32})$/.exec(line) ?? []
      const [, named] = /^generated work package: \[\{.*?"type":"([^"]+)"/.exec(line) ?? []
      if (named !== undefined) type = named
      else if (uuid === undefined) complaints.push(withoutControls(line))
      else {
        url = line.slice('result URL: '.length)
        expected.tell(uuid, type)
      }
    },
  })
  producers.add(producer)
  const exitCode = await producer.ended
  producers.delete(producer)
  expected.end()
  return { exitCode, document, url, complaints }
}
