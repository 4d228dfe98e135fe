/** The live view: what the worker logs and what producers tell, in an order that makes sense. */

import { type Heard, type Told, tellLogLine } from './story.ts'

export interface Live {
  /** A line of the worker's log. */
  hear(line: string): void
  tell(told: Told): void
  /** A producer is started: jobs that nobody knows yet may be its own, and wait until it has told of them. */
  expectJob(): { tell(uuid: string, type: string): void; end(): void }
}

/** @param onEvent told the name of each event that is shown */
export function makeLive(print: (told: Told) => void, onEvent: (event: string) => void): Live {
  const known = new Set<string>()
  const waiting: Heard[] = []
  let expected = 0
  const show = (heard: Heard) => {
    print(heard)
    if (heard.uuid !== undefined && heard.event === 'job_settled') known.delete(heard.uuid)
  }
  const showWaiting = () => {
    for (const heard of waiting.splice(0)) {
      if (expected > 0 && !known.has(heard.uuid ?? '')) waiting.push(heard)
      else show(heard)
    }
  }
  return {
    hear(line) {
      const heard = tellLogLine(line)
      if (heard === undefined) return
      const isEarly = expected > 0 && heard.uuid !== undefined && !known.has(heard.uuid)
      if (isEarly) waiting.push(heard)
      else show(heard)
      if (heard.event !== undefined) onEvent(heard.event)
    },
    tell: print,
    expectJob() {
      expected++
      let isOpen = true
      const end = () => {
        if (isOpen) expected--
        isOpen = false
        showWaiting()
      }
      return {
        tell(uuid, type) {
          known.add(uuid)
          print({ uuid, type, text: 'put into the queue', tone: 'plain' })
          end()
        },
        end,
      }
    },
  }
}
