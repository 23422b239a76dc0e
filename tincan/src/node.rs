//! The pure core: peers, links and their life cycle. Calls, ICE and engine events and time go in; answers,
//! notifications, commands and the next deadline come out.
